"""Sources, columns, bad rows and splits."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft.data.columns import Columns, choose_columns
from redraft.data.examples import Example, Examples, key_text, load, normalise, paired, read, split
from redraft.data.locate import resolve
from redraft.data.report import describe
from redraft.data.rows import Row
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError

PAIRS = [
    ("a cat", "eine Katze"),
    ('say "hi", you', "sag; hallo"),
    ("two\nlines", "zwei\nZeilen"),
    ("naïve 猫", "\t spaß "),
]


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFT_DATA", raising=False)


def jsonl(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def taken(path: str, columns: Columns | None = None) -> list[tuple[str | None, str]]:
    return [(example.prompt, example.target) for example in read(path, columns)]


def write_pairs(path: Path) -> str:
    rows = [{"src": a, "ref": b} for a, b in PAIRS]
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        separator = {"semi": ";", "pairs": ","}.get(path.stem, "\t")
        with path.open("w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.writer(stream, delimiter=separator)
            writer.writerows([("src", "ref"), *PAIRS])
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        jsonl(path, rows)
    return str(path)


TABLES = ["pairs.jsonl", "pairs.ndjson", "pairs.json", "pairs.csv", "semi.csv", "tab.csv"]


@pytest.mark.parametrize("name", [*TABLES, "pairs.parquet", *(name + ".gz" for name in TABLES)])
def test_every_table_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    plain = Path(write_pairs(tmp_path / name.removesuffix(".gz")))
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    assert taken(str(tmp_path / name)) == PAIRS


def test_datasets_folder_gives_the_same_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list([{"src": a, "ref": b} for a, b in PAIRS])
    table.save_to_disk(tmp_path / "one")
    assert taken(str(tmp_path / "one")) == PAIRS
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(tmp_path / "many")
    assert taken(f"{tmp_path / 'many'}#test") == PAIRS[:1]
    with pytest.raises(UserError, match="no split 'tset'"):
        read(f"{tmp_path / 'many'}#tset")
    splits = load(str(tmp_path / "many"), fractions=(1, 0, 0))
    assert [(e.prompt, e.target) for e in splits.train] == PAIRS
    assert len(splits.test) == 1 and len(splits.validation) == 0


def test_plain_text_is_documents_between_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\n  more\r\n\r\n \ntwo\n\n\n")
    assert taken(str(file)) == [(None, "one\n  more"), (None, "two")]
    assert [example.where for example in read(str(file))] == [f"{file}:1", f"{file}:5"]
    (tmp_path / "b.md").write_text("three\n\nfour")
    assert taken(str(tmp_path)) == [(None, "one\n  more\n\n \ntwo\n\n"), (None, "three\n\nfour")]


BROKEN = {
    "bytes": (b'{"text": "a"}\n{"text": "\xff"}\n', 2, "not valid UTF-8"),
    "json": (b'{"text": "a"}\n{"text": \n', 2, "not valid JSON"),
    "list": (b'{"text": "a"}\n[1]\n', 2, "list instead of an object"),
    "blank": (b'{"text": "a"}\n\n{"text": "b"}\n', 2, "empty line"),
    "missing": (b'{"text": "a"}\n{"txt": "b"}\n', 2, "'text' is missing"),
    "null": (b'{"text": "a"}\n{"text": null}\n', 2, "'text' is null"),
    "number": (b'{"text": "a"}\n{"text": 3}\n', 2, "'text' is not a text but a number"),
    "empty": (b'{"text": " "}\n{"text": "b"}\n', 1, "'text' is empty"),
    "surrogate": (b'{"text": "a"}\n{"text": "\\ud800"}\n', 2, "half of a surrogate pair"),
}


@pytest.mark.parametrize("content, line, reason", BROKEN.values(), ids=BROKEN)
def test_a_bad_row_raises_or_is_skipped(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(str(file))
    assert f"{file}:{line}: " in str(caught.value) and reason in str(caught.value)
    examples = read(str(file), skip_bad_rows=True)
    assert [bad.where for bad in examples.skipped] == [f"{file}:{line}"]
    assert reason in examples.skipped[0].reason
    assert len(examples) == content.strip().count(b"\n")


BROKEN_TABLES = {
    "fields": (b"src,ref\na,b\nc\n", 3, "1 fields, but the header names 2"),
    "bytes": (b'src,ref\n"a\nx",b\n\xe9,d\n', 4, "not valid UTF-8"),
    "quote": (b'src,ref\na,b\n"c,d\n', 3, "not valid CSV"),
    "empty target": (b"src,ref\na,\nc,d\n", 2, "'ref' is empty"),
    "blank": (b"src,ref\n\nc,d\n", 2, "empty line"),
}


@pytest.mark.parametrize("content, line, reason", BROKEN_TABLES.values(), ids=BROKEN_TABLES)
def test_bad_rows_of_a_table(tmp_path: Path, content: bytes, line: int, reason: str) -> None:
    file = tmp_path / "bad.csv"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(str(file))
    assert f"{file}:{line}: " in str(caught.value) and reason in str(caught.value)
    assert len(read(str(file), skip_bad_rows=True)) == 1


def test_long_fields_are_read_without_a_lasting_change(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    file = tmp_path / "long.csv"
    file.write_text(f"src,ref\na,{'x' * 200_000}\n")
    assert len(read(str(file))[0].target) == 200_000
    assert csv.field_size_limit() == before


def test_broken_utf8_in_plain_text(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(b"good\n\nstill\nb\xe4d\n\nalso good\n")
    with pytest.raises(UserError, match=r"bad.txt:4: not valid UTF-8 \(byte 0xe4 at byte 2 of the line\)"):
        read(str(file))
    assert [e.target for e in read(str(file), skip_bad_rows=True)] == ["good", "also good"]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    good = jsonl(tmp_path / "corpus.jsonl", [{"text": "a" * 5000}])
    with pytest.raises(UserError, match="Did you mean 'corpus.jsonl'"):
        read(str(tmp_path / "corpsu.jsonl"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match="holds no rows"):
        read(str(tmp_path / "empty.jsonl"))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(Path(good).read_bytes())[:-9])
    with pytest.raises(UserError, match="gzip data is broken after line 0"):
        read(str(tmp_path / "cut.jsonl.gz"))
    (tmp_path / "wide.txt").write_text("hello", encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16"):
        read(str(tmp_path / "wide.txt"))
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="kind of data in .*photo.jpg"):
        read(str(tmp_path / "photo.jpg"))
    (tmp_path / "twice.csv").write_text("a,a\n1,2\n")
    with pytest.raises(UserError, match="'a'"):
        read(str(tmp_path / "twice.csv"))
    pytest.importorskip("pyarrow")
    (tmp_path / "not.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError, match="Parquet"):
        read(str(tmp_path / "not.parquet"))


def test_columns(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "d.jsonl", [{"question": "q", "context": "c", "solution": "s", "note": "n"}])
    assert taken(file, Columns(input="question", target="solution")) == [("q", "s")]
    assert taken(file, Columns(input="context+question", target="note")) == [("c\nq", "n")]
    assert taken(file, Columns(text="note")) == [(None, "n")]
    with pytest.raises(
        UserError, match=r"no column 'sollution'. Did you mean 'solution'\? Known: context, note, question"
    ):
        read(file, Columns(input="question", target="sollution"))
    with pytest.raises(UserError, match="Give both"):
        read(file, Columns(input="question"))
    with pytest.raises(UserError, match="not both"):
        read(file, Columns(text="note", input="question", target="solution"))
    with pytest.raises(UserError, match="recognised .*question.*--text"):
        read(file)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["text", "source"], Columns(text="text")),
        (["ref", "src", "text"], Columns(input="src", target="ref")),
        (["Prompt", "completion"], Columns(input="Prompt", target="completion")),
        (["instruction", "input", "output"], Columns(input="instruction+input", target="output")),
        (["instruction", "output"], Columns(input="instruction", target="output")),
        (["question", "rationale", "answer"], Columns(input="question", target="answer")),
        (["document", "summary", "references"], Columns(input="document", target="summary")),
        (["input", "target"], Columns(input="input", target="target")),
        (["mr", "text"], Columns(input="mr", target="text")),
        (["source", "messages"], Columns(messages="messages")),
    ],
)
def test_common_names_are_recognised(names: list[str], expected: Columns) -> None:
    assert choose_columns(Columns(), Row(dict.fromkeys(names, "x"), "f", 1)) == expected


def test_a_dot_reaches_into_a_column(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"q": "who", "answers": [{"text": "Ann"}, {"text": "Bo"}], "a.b": "as it is"},
        {"q": "what", "answers": []},
    ]
    path = jsonl(tmp_path / "nested.jsonl", rows)
    columns = Columns(input="q", target="answers.0.text")
    with pytest.raises(UserError, match=r"nested\.jsonl:2: column 'answers\.0\.text' is missing"):
        read(path, columns)
    assert [e.target for e in read(path, columns, skip_bad_rows=True)] == ["Ann"]
    assert read(path, Columns(input="q", target="a.b"), skip_bad_rows=True)[0].target == "as it is"
    with pytest.raises(UserError, match="answer"):
        read(path, Columns(input="q", target="answer.0.text"))


def test_chats(tmp_path: Path) -> None:
    def chat_row(*turns: str) -> dict[str, object]:
        return {"messages": [{"role": turn.split(":")[0], "content": turn.split(":")[1]} for turn in turns]}

    file = jsonl(
        tmp_path / "chat.jsonl",
        [
            chat_row("user:hi", "assistant:hello"),
            chat_row("system:be brief", "user:a", "assistant:b", "user:c", "assistant:d"),
        ],
    )
    assert taken(file) == [
        ("hi", "hello"),
        ("system: be brief\nuser: a", "b"),
        ("system: be brief\nuser: a\nassistant: b\nuser: c", "d"),
    ]
    assert [len(example.turns) for example in read(file)] == [1, 2, 4]
    assert len({key_text(example) for example in read(file)[1:]}) == 1, "a conversation is in one split"
    more = read(jsonl(tmp_path / "more.jsonl", [chat_row("user:a", "assistant:b", "user:c")]))
    assert (len(more), more.unanswered) == (1, 1)
    many = [chat_row(f"user:{n}", "assistant:b", "user:c") for n in range(90)]
    told = str(describe(load(jsonl(tmp_path / "many.jsonl", many))))
    assert "end with a message without an answer, which is left out: 90" in told
    weighted = chat_row("user:a", "assistant:b", "user:c", "assistant:d")
    weighted["messages"][1]["weight"] = 0  # type: ignore[index]
    assert [target for _, target in taken(jsonl(tmp_path / "weighted.jsonl", [weighted]))] == ["d"]
    with pytest.raises(UserError, match=":1: column 'messages' has no reply"):
        read(jsonl(tmp_path / "no.jsonl", [chat_row("user:hi")]))


def test_sets_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "root" / "mt"
    folder.mkdir(parents=True)
    for name, count in (("train", 20), ("validation", 2), ("test", 3)):
        jsonl(folder / f"tiny.en-de.{name}.jsonl", [{"src": f"{name} {i}", "ref": "x"} for i in range(count)])
    jsonl(folder / "tiny.en-fr.train.jsonl", [{"src": "other", "ref": "x"}])
    root = str(tmp_path / "root")
    sizes = [len(examples) for _, examples in load("mt/tiny.en-de", data_root=root).items()]
    assert sizes == [20, 2, 3]
    assert len(read("mt/tiny.en-de", data_root=root)) == 25
    with pytest.raises(UserError, match=r"set 'mt/tiny.en-de'.*--data-root or REDRAFT_DATA.*hub:mt/tiny.en-de"):
        load("mt/tiny.en-de")
    monkeypatch.setenv("REDRAFT_DATA", root)
    assert resolve("mt/tiny.en-de")["test"] == [str(folder / "tiny.en-de.test.jsonl")]
    assert resolve("mt/tiny.en-de.test.jsonl") == {"": [str(folder / "tiny.en-de.test.jsonl")]}
    with pytest.raises(UserError, match="Did you mean 'tiny.en-de'"):
        load("mt/tiny.en-d")
    with pytest.raises(UserError, match="several sets"):
        load("mt")
    mapping = {"train": "mt/tiny.en-de.train.jsonl", "test": "mt/tiny.en-fr.train.jsonl"}
    assert [len(e) for _, e in load(mapping, fractions=(1, 0, 0)).items()] == [20, 0, 1]
    with pytest.raises(UserError, match="split 'tset'"):
        load({"tset": "mt/tiny.en-de.train.jsonl"})


def test_a_folder_of_tables(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    shards = tmp_path / "shards"
    plain.mkdir(), shards.mkdir()
    for i in range(2):
        jsonl(plain / f"part{i}.jsonl", [{"text": f"{i}"}])
        jsonl(shards / f"train-0000{i}-of-00002.jsonl", [{"text": f"{i}"}])
    jsonl(shards / "test.jsonl", [{"text": "t"}])
    assert taken(str(plain)) == [(None, "0"), (None, "1")]
    parts = load(str(shards), fractions=(1, 0, 0))
    assert ([e.target for e in parts.train], [e.target for e in parts.test]) == (["0", "1"], ["t"])
    (plain / "notes.txt").write_text("x")
    with pytest.raises(UserError, match="several kinds"):
        read(str(plain))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no data files"):
        read(str(tmp_path / "nothing"))


def made(*prompts: str) -> Examples:
    return Examples([Example(p, "t", f"f:{i}") for i, p in enumerate(prompts)], Columns(input="p", target="t"))


def split_of(examples: Examples, **options: object) -> dict[str, str]:
    parts = split(examples, **options)  # type: ignore[arg-type]
    return {example.prompt or "": name for name, part in parts.items() for example in part}


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), unique=True), st.lists(st.text("xyz")))
@settings(deadline=None, max_examples=50)
def test_a_split_partitions_and_adding_rows_moves_none(first: list[str], more: list[str]) -> None:
    before = split_of(made(*first), fractions=(0.5, 0.25, 0.25))
    after = split_of(made(*more, *first), fractions=(0.5, 0.25, 0.25))
    assert set(before) == set(first)
    assert all(after[prompt] == name for prompt, name in before.items())


def test_split_shares_equal_inputs_and_seeds() -> None:
    prompts = [f"sentence number {i}" for i in range(4000)]
    found = split_of(made(*prompts), fractions=(0.9, 0.05, 0.05))
    counts = [sum(name == part for name in found.values()) for part in ("train", "validation", "test")]
    # binomial: four standard deviations
    assert abs(counts[0] - 3600) < 76 and abs(counts[1] - 200) < 56 and abs(counts[2] - 200) < 56
    twins = split_of(made(*(prompt.upper() + " !" for prompt in prompts)), fractions=(0.9, 0.05, 0.05))
    assert list(twins.values()) == [found[prompt] for prompt in (key.lower().removesuffix(" !") for key in twins)]
    assert split_of(made(*prompts), fractions=(0.9, 0.05, 0.05), seed=1) != found
    assert set(split_of(made(*prompts), fractions=(0, 0.5, 0.5)).values()) == {"validation", "test"}
    with pytest.raises(UserError, match="three numbers"):
        split(made("a"), (0.9, 0.1))


def test_normalise() -> None:
    assert normalise("  Hello,\tＷORLD! ") == normalise("hello world") == "hello world"
    assert normalise("1 + 1") != normalise("1 = 1")
    assert normalise("हिन्दी") != normalise("हन्द")  # marks are letters' parts, not punctuation
    assert normalise("?!") != normalise("...")


def test_an_empty_split_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none of them falls into the"):
        load(jsonl(tmp_path / "two.jsonl", [{"text": "a"}, {"text": "b"}]))


def test_report_finds_planted_duplicates_contamination_and_bad_rows(tmp_path: Path) -> None:
    def file(name: str, rows: list[tuple[str, str]], extra: str = "") -> str:
        path = jsonl(tmp_path / f"d.{name}.jsonl", [{"src": a, "ref": b} for a, b in rows])
        Path(path).write_text(Path(path).read_text() + extra)
        return path

    train = file("train", [("a", "xx"), ("b", "y"), ("a", "xx"), ("a", "zzz")], "not json\n")
    test = file("test", [("B!", "y"), ("a", "q"), ("new", "q")])
    report = describe(load(str(tmp_path / "d"), fractions=(1, 0, 0), skip_bad_rows=True), Tokenizer.bytes())
    first, _, last = report.splits
    assert (first.rows, last.rows) == (4, 3)
    assert first.duplicates == ((f"{train}:3", f"{train}:1"),)
    assert first.same_input == 1
    assert first.lengths["target characters"].quantiles == (1, 2, 2, 2, 3, 3)
    assert first.lengths["target tokens"].total == 8
    assert first.contamination is None and last.contamination is not None
    assert [(one.where, one.train, one.kind) for one in last.contamination.overlaps] == [
        (f"{test}:1", f"{train}:2", "duplicate"),
        (f"{test}:2", f"{train}:1", "same input"),
    ]
    assert [bad.where for bad in first.skipped] == [f"{train}:5"]
    text = str(report)
    assert "input = 'src', target = 'ref' (recognised by name)" in text
    assert "test: 3 rows, too few" in text and "train: 4 rows\n" in text
    assert "bad rows left out: 1" in text and f"{train}:5: not valid JSON" in text


DATA = Path(os.environ.get("REDRAFT_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.skipif(not (DATA / "MANIFEST.json").is_file(), reason="the full data sets are not here (REDRAFT_DATA)")
@pytest.mark.parametrize("name", ["mt/tanaka.en-ja", "lm/storybooks", "summarization/scitldr", "reasoning/gsm8k"])
def test_real_sets_have_as_many_rows_as_their_manifest(name: str) -> None:
    listed = json.loads((DATA / "MANIFEST.json").read_text())["files"]
    rows = {entry["split"]: entry["rows"] for entry in listed if entry["name"].startswith(f"{name}.")}
    assert {part: len(examples) for part, examples in load(name, data_root=str(DATA)).items()} == rows


def test_paired_is_decided_by_the_first_row(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    (tmp_path / "texts.jsonl").write_text('{"text": "a", "words": "b", "answer": "c"}\n')
    (tmp_path / "chat.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    assert paired(str(tmp_path / "pairs.jsonl"))
    assert paired(str(tmp_path / "chat.jsonl"))
    assert not paired(str(tmp_path / "texts.jsonl"))
    assert paired("texts.jsonl", Columns(input="words", target="answer"), str(tmp_path))
    assert not paired(str(tmp_path / "pairs.jsonl"), Columns(text="answer"))
    with pytest.raises(UserError, match="nowhere"):
        paired(str(tmp_path / "nowhere.jsonl"))
