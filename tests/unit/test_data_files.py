"""Files as people have them: folders with splits, stray quotes, repeated columns, damaged and hostile files."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

from redraft import host_memory
from redraft.compare.data import load_dataset
from redraft.compare.study import Study
from redraft.data import rows as data_rows
from redraft.data.columns import Columns
from redraft.data.examples import load, read
from redraft.data.locate import resolve
from redraft.data.report import describe
from redraft.errors import UserError
from redraft.evaluation.config import DataSource, Evaluation
from redraft.train.recipe import Recipe
from redraft.train.setup import texts


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFT_DATA", raising=False)


def write(root: Path, *names: str) -> str:
    """Files of one row each, whose text is the file's name within ``root``."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name if file.suffix in (".txt", ".md") else json.dumps({"text": name}) + "\n", encoding="utf-8")
    return str(root)


def splits_of(folder: str) -> dict[str, set[str]]:
    """The texts of each split, without cutting any."""
    return {
        name: {example.target for file in files for example in read(file)} for name, files in resolve(folder).items()
    }


HASH = "a09b74b3ef9c3b56"
LAYOUTS = {
    "folders": {"train": ["train/a.jsonl", "train/deep/b.jsonl"], "test": ["test/a.jsonl"]},
    "folders of sets": {"train": ["train_data/a.jsonl"], "test": ["test_data/a.jsonl"]},
    "hub": {
        "train": [f"data/train-0000{i}-of-00002-{HASH}.jsonl" for i in range(2)],
        "validation": [f"data/validation-00000-of-00001-{HASH}.jsonl"],
        "test": ["data/test-00000-of-00001.jsonl"],
    },
    "digits and spaces": {"train": ["train 1.jsonl", "train2.jsonl", "train (3).jsonl"], "test": ["test 1.jsonl"]},
    "one set": {"train": ["mt.train.jsonl"], "validation": ["mt.dev.jsonl"], "test": ["mt.test.jsonl"]},
    "no training rows": {"validation": ["dev.jsonl"], "test": ["eval.jsonl"]},
    "folders of documents": {"train": ["train/a.txt", "train/b.txt"], "test": ["test/a.txt"]},
    "a file and a folder": {"train": ["train/a.jsonl"], "test": ["test.jsonl"]},
}
BESIDE = (
    "README.md",
    "LICENSE.txt",
    "dataset_infos.json",
    "._train.jsonl",
    ".ipynb_checkpoints/test.jsonl",
    "__MACOSX/a.txt",
)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_splits_are_those_that_the_names_tell(tmp_path: Path, layout: dict[str, list[str]]) -> None:
    folder = write(tmp_path, *(name for names in layout.values() for name in names), *BESIDE)
    assert splits_of(folder) == {name: set(names) for name, names in layout.items()}


def test_hidden_files_and_readmes_are_no_documents(tmp_path: Path) -> None:
    folder = write(tmp_path, "a.txt", "deep/b.txt", *BESIDE)
    assert {example.target for example in read(folder)} == {"a.txt", "deep/b.txt"}


AMBIGUOUS = {
    "a file without a split": (["train.jsonl", "extra.jsonl"], "no name tells the split: .*extra.jsonl"),
    "two words": (["train/a.jsonl", "test/train.jsonl"], r"test/train.jsonl' tells several splits \(test, train\)"),
    "two sets": (["en/train.jsonl", "de/train.jsonl"], "several sets: .*de/train.jsonl, .*en/train.jsonl"),
    "two kinds": (["train.jsonl", "notes.txt"], r"several kinds of data \(Jsonl, Text\): .*notes.txt"),
    "packed": (["train.jsonl", "test.jsonl.zst"], "test.jsonl.zst' is compressed"),
}


@pytest.mark.parametrize("names, message", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_what_is_ambiguous_is_an_error_that_lists_the_files(tmp_path: Path, names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(write(tmp_path, *names))


def test_a_link_to_nothing_is_told_as_one(tmp_path: Path) -> None:
    write(tmp_path, "train.jsonl")
    (tmp_path / "test.jsonl").symlink_to(tmp_path / "blobs" / "gone")
    for source in (tmp_path, tmp_path / "test.jsonl"):
        with pytest.raises(UserError, match="is a link to '.*gone', which does not exist"):
            resolve(str(source))


PAIR = Columns(input="a", target="b")


def pairs(path: Path, content: str, skip: bool = True) -> tuple[list[tuple[str | None, str]], list[str]]:
    """The pairs of a file, and ``line: reason`` of the rows that were left out."""
    path.write_text(content, encoding="utf-8")
    found = read(str(path), PAIR, skip_bad_rows=skip)
    left = [f"{bad.where.rpartition(':')[2]}: {bad.reason}" for bad in found.skipped]
    return [(example.prompt, example.target) for example in found], left


def test_a_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    content = 'a\tb\n"Yes\tJa\nNo"\tNein\n"""\t"x, y"\n'
    expected = [('"Yes', "Ja"), ('No"', "Nein"), ('"""', '"x, y"')]
    assert pairs(tmp_path / "q.tsv", content, skip=False) == (expected, [])
    (tmp_path / "q.tsv.gz").write_bytes(gzip.compress(content.encode()))
    assert [example.target for example in read(str(tmp_path / "q.tsv.gz"), PAIR)] == [pair[1] for pair in expected]
    with pytest.raises(UserError, match=r"q.tsv:2: 1 fields, .*a table with quoted fields is read under the name .csv"):
        pairs(tmp_path / "q.tsv", 'a\tb\n"x\ny"\tz\n', skip=False)
    assert pairs(tmp_path / "quoted.csv", 'a\tb\n"x\ny"\t"a ""z"""\n', skip=False)[0] == [("x\ny", 'a "z"')]


def test_a_stray_quote_loses_its_own_row_alone(tmp_path: Path) -> None:
    good = [f"{n},x{n}" for n in range(300)]
    for at in (0, 7, 299):
        rows = [*good[:at], '"stray,y', *good[at:]]
        found, left = pairs(tmp_path / "q.csv", "\n".join(["a,b", *rows]) + "\n")
        assert found == [tuple(row.split(",")) for row in good]
        assert left == [f"{at + 2}: not valid CSV: a quote is not closed"]
    # A second quote closes the first one, many rows later.
    rows = [*good[:7], '"stray,y', *good[7:50], 'also",z', *good[50:]]
    found, left = pairs(tmp_path / "q.csv", "\n".join(["a,b", *rows]) + "\n")
    assert [pair for pair in found if pair[0] != 'also"'] == [tuple(row.split(",")) for row in good]
    assert left == ["9: a quote is open over 45 lines, each of which is a row of its own"]


def test_a_short_pair_of_stray_quotes_is_told(tmp_path: Path) -> None:
    swallowed = 'a,b\n1,x\n"stray,y\n2,z\nalso",w\n3,v\n'
    found, left = pairs(tmp_path / "q.csv", swallowed, skip=False)
    assert (found, left) == ([("1", "x"), ("stray,y\n2,z\nalso", "w"), ("3", "v")], [])
    told = "q.csv:3: a quote is open over 3 lines, each of which could be a row of its own"
    splits = load(str(tmp_path / "q.csv"), PAIR, fractions=(1.0, 0.0, 0.0))
    assert [f"{Path(one.where).name}: {one.reason}" for one in splits.train.doubtful] == [told]
    assert "rows that may be several: 1" in str(describe(splits))
    said: list[str] = []
    Evaluation(data=str(tmp_path / "q.csv"), input="a", target="b").examples(said.append)
    assert sum(told in line for line in said) == 1
    # A mixture that repeats the row tells it once.
    table = '[[task]]\nname = "{}"\nsource = "{}"\n{}'
    (tmp_path / "big.jsonl").write_text("".join(f'{{"input": "{n}", "target": "t"}}\n' for n in range(400)))
    (tmp_path / "q.csv").write_text(swallowed + "".join(f"k{n},v\n" for n in range(40)))
    columns = 'input = "a"\ntarget = "b"\n'
    mix = tmp_path / "m.mix.toml"
    mix.write_text(table.format("q", "q.csv", columns) + table.format("big", "big.jsonl", ""))
    assert [len(part.doubtful) for _, part in load(str(mix)).items() if part.doubtful] == [1]
    # A text of several lines that do not look like rows is beyond doubt; so is a table of one column.
    for content in ('input,target\n"no\nseparator",y\n', 'input,target\n"a, b, c\nd",y\n', 'text\n"x\ny"\n'):
        (tmp_path / "fine.csv").write_text(content)
        assert read(str(tmp_path / "fine.csv")).doubtful == []


def test_long_quoted_fields_are_still_one_row(tmp_path: Path) -> None:
    text = "\n".join(f"line {n}" for n in range(500))
    assert pairs(tmp_path / "q.csv", f'a,b\n"{text}","{text}"\nc,d\n', skip=False)[0] == [(text, text), ("c", "d")]


def test_a_name_that_occurs_twice_is_refused_in_every_format(tmp_path: Path) -> None:
    for name, content in (("t.csv", "a,b,b\n1,2,3\n"), ("t.tsv", "a\tb\tb\n1\t2\t3\n")):
        with pytest.raises(UserError, match=f"{name}:1: Two columns have the name 'b'"):
            pairs(tmp_path / name, content)
    for name, content in (
        ("t.jsonl", '{"a": "1", "b": "2", "b": "3"}\n'),
        ("t.json", '[{"a": "1", "b": "2", "b": "3"}]'),
    ):
        with pytest.raises(UserError, match=f"{name}.*the name 'b' occurs twice"):
            pairs(tmp_path / name, content, skip=False)
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_arrays([pyarrow.array([x]) for x in "123"], names=["a", "b", "b"])
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "t.parquet")
    with pytest.raises(UserError, match="t.parquet: Two columns have the name 'b'"):
        read(str(tmp_path / "t.parquet"), PAIR)


def test_json_over_several_lines_is_told_as_such(tmp_path: Path) -> None:
    def message(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError) as caught:
            read(str(tmp_path / name), skip_bad_rows=True)
        return str(caught.value)

    row = {"input": "a", "target": "b"}
    assert "one JSON object over several lines" in (found := message("a.json", json.dumps({"rows": [row]}, indent=1)))
    assert "under 'rows'" in found
    pretty = json.dumps(row, indent=1)
    assert "holds 2 JSON values over several lines" in message("b.jsonl", f"{pretty}\n{pretty}\n")
    assert "holds one list" in message("c.jsonl", json.dumps([row, row]))
    (tmp_path / "d.jsonl").write_text(f"[1]\n{json.dumps(row)}\n")  # a bad row is still one
    assert len(read(str(tmp_path / "d.jsonl"), skip_bad_rows=True)) == 1


def test_hostile_files_are_refused_before_they_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for source in (str(tmp_path / "pipe.jsonl"), "/dev/zero"):
        with pytest.raises(UserError, match="is a pipe or a device"):
            read(source)
    monkeypatch.setattr(data_rows, "_MOST_EMPTY", 1000)
    for name in ("empty.jsonl.gz", "empty.txt.gz", "empty.csv.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"text": "a"}\n' + b"\n" * 1001, 1))
        with pytest.raises(UserError, match=f"{name}:2: More than 1,000 empty lines"):
            read(str(tmp_path / name), skip_bad_rows=True)
    monkeypatch.setattr(data_rows.lines, "__defaults__", (1 << 20,))
    with gzip.open(tmp_path / "long.txt.gz", "wb") as file:
        file.write(b"a\n" + b" " * (3 << 20))
    with pytest.raises(UserError, match="long.txt.gz:2: The line is longer than 1 MiB"):
        read(str(tmp_path / "long.txt.gz"))


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.csv.gz", "one.txt.gz"])
def test_data_of_any_size_are_read_as_long_as_they_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Many equal lines compress as well as a file that was made to fill the memory; only what is held counts."""
    line = {"jsonl": b'{"text": "aaaaaaaa"}\n', "csv": b"aaaaaaaa\n", "txt": b"aaaaaaaa\n"}[name.split(".")[1]]
    head = b"text\n" if "csv" in name else b""
    (tmp_path / name).write_bytes(gzip.compress(head + line * 20_000, 9))
    assert os.path.getsize(tmp_path / name) < 2000
    assert len(read(str(tmp_path / name))) == (1 if "txt" in name else 20_000)
    monkeypatch.setattr(host_memory, "left", lambda: 1_000_000)
    with pytest.raises(UserError, match=f"{name}' holds more than fits into memory: 1 MB are left"):
        read(str(tmp_path / name), skip_bad_rows=True)


def test_a_run_of_empty_lines_is_one_bad_row(tmp_path: Path) -> None:
    found, left = pairs(tmp_path / "t.csv", "a,b\n1,2\n\n\n\n3,4\n\n\n")
    assert (found, left) == ([("1", "2"), ("3", "4")], ["3: 3 empty lines"])


def test_every_command_splits_a_file_in_the_same_way(tmp_path: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text("".join(json.dumps({"input": f"row {n}", "target": f"{n}"}) + "\n" for n in range(500)))
    trained = texts(Recipe.of({"data": {"source": str(file)}, "train": {"tokens": 1}}))
    tuned = DataSource(data=str(file)).splits()
    compared = load_dataset(Study(data=str(file)))
    for name, part in trained.items():
        assert part.rows == dict(tuned.items())[name].rows == getattr(compared, name)
    assert "80% train, 8% validation, 12% test" in str(trained) and str(trained) in compared.notes[0]
    # Rows that a larger file holds out for testing were never training rows while it was small.
    before = {example.where for example in load(str(file), fractions=(0.8, 0.08, 0.12)).test}
    assert {example.where for example in load(str(file), fractions=(0.9, 0.04, 0.06)).test} <= before
