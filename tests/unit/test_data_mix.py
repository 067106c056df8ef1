"""Mixtures: several sets as one, in given proportions, with a prompt for each task."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.data.locate import resolve
from redraft.data.report import describe
from redraft.data.sources.mix import Mixture, Part
from redraft.errors import UserError


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDRAFT_DATA", raising=False)


def jsonl(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(path: Path, name: str, count: int, **splits: int) -> None:
    for split, rows in {"train": count, "validation": 2, "test": 3, **splits}.items():
        jsonl(path / f"{name}.{split}.jsonl", [{"q": f"{name} {split} {i}", "a": f"{i}"} for i in range(rows)])


def mixture(folder: Path, text: str) -> str:
    path = folder / "both.mix.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def task(name: str, source: str = "", prompt: str = "", more: str = "") -> str:
    prompt = f'prompt = "{prompt or name}: {{}}"'
    return f'[[task]]\nname = "{name}"\nsource = "{source or name}"\ninput = "q"\ntarget = "a"\n{prompt}\n{more}\n'


def test_rows_carry_their_task_and_prompt(tmp_path: Path) -> None:
    pairs(tmp_path, "one", 3)
    pairs(tmp_path, "two", 3)
    found = load(mixture(tmp_path, task("one") + task("two")))
    assert [len(part) for _, part in found.items()] == [6, 4, 6]
    first = found.test[0]
    assert (first.prompt, first.target, first.task) == ("one: one test 0", "0", "one")
    assert first.where == f"{tmp_path / 'one.test.jsonl'}:1"


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.0])
def test_proportions_follow_the_temperature(tmp_path: Path, temperature: float) -> None:
    """Raffel et al. 2019: n^(1/T). 32 rows against 8: at temperature 2 they are sampled 2 : 1."""
    pairs(tmp_path, "large", 32)
    pairs(tmp_path, "small", 8)
    found = load(mixture(tmp_path, f"temperature = {temperature}\n" + task("large") + task("small")))
    count = Counter(example.task for example in found.train)
    assert count["large"] == 32  # no row is left out
    assert count["small"] == pytest.approx(32 * (8 / 32) ** (1 / temperature), abs=4)
    assert Counter(example.task for example in found.test) == {"large": 3, "small": 3}
    seen = Counter(example.where for example in found.train if example.task == "small")
    assert max(seen.values()) - min(seen.values()) <= 1


def test_the_rule_is_exact_in_expectation() -> None:
    rows, temperature = [1000, 250, 10], 2.5
    times = Mixture((Part("a", "a"), Part("b", "b"), Part("c", "c")), temperature).repeats(rows)
    met = [count * often for count, often in zip(rows, times, strict=True)]
    for ours, theirs in zip(met[1:], rows[1:], strict=True):
        assert ours / met[0] == pytest.approx((theirs / rows[0]) ** (1 / temperature))
    assert min(times) == 1


def test_order_is_deterministic_and_evenly_mixed(tmp_path: Path) -> None:
    pairs(tmp_path, "large", 60)
    pairs(tmp_path, "small", 20)
    source = mixture(tmp_path, "temperature = 1.5\n" + task("large") + task("small"))
    first, again = (load(source).train.rows for _ in range(2))
    assert first == again
    share = sum(e.task == "small" for e in first) / len(first)
    for begin in range(0, len(first) - 20, 20):
        assert sum(e.task == "small" for e in first[begin : begin + 20]) == pytest.approx(20 * share, abs=2)


def test_rows_can_be_limited(tmp_path: Path) -> None:
    pairs(tmp_path, "one", 50)
    pairs(tmp_path, "two", 5)
    found = load(mixture(tmp_path, task("one", more="rows = 10") + task("two")))
    assert Counter(example.task for example in found.train) == {"one": 10, "two": 5}


def test_sources_are_looked_up_beside_the_file_and_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs(tmp_path / "here", "one", 2)
    pairs(tmp_path / "data" / "sub", "two", 2)
    source = mixture(tmp_path / "here", task("one") + task("two", "sub/two"))
    with pytest.raises(UserError, match="sub/two"):
        load(source)
    assert len(load(source, data_root=str(tmp_path / "data")).train) == 4
    monkeypatch.setenv("REDRAFT_DATA", str(tmp_path / "data"))
    assert len(load(source).train) == 4
    assert set(resolve(source)) == {"train", "validation", "test"}


def test_a_set_without_splits_is_split_as_it_would_be_alone(tmp_path: Path) -> None:
    jsonl(tmp_path / "whole.jsonl", [{"q": f"question {i}", "a": "x"} for i in range(200)])
    pairs(tmp_path, "one", 4)
    found = load(mixture(tmp_path, task("whole", "whole.jsonl") + task("one")))
    alone = load(str(tmp_path / "whole.jsonl"), Columns(input="q", target="a"))
    for (_, mixed), (_, part) in zip(found.items(), alone.items(), strict=True):
        assert [e.where for e in mixed if e.task == "whole"] == [e.where for e in part]


def test_the_report_names_tasks_and_counts_no_repetition_as_duplicate(tmp_path: Path) -> None:
    pairs(tmp_path, "large", 32)
    pairs(tmp_path, "small", 8)
    jsonl(tmp_path / "small.train.jsonl", [{"q": f"small {i % 7}", "a": "x"} for i in range(8)])  # one true duplicate
    found = describe(load(mixture(tmp_path, "temperature = 2\n" + task("large") + task("small"))))
    train = found.splits[0]
    assert [(part.name, part.rows, part.distinct) for part in train.tasks] == [("large", 32, 32), ("small", 16, 8)]
    assert {where for where, _ in train.duplicates} == {f"{tmp_path / 'small.train.jsonl'}:8"}
    assert train.same_input == 0
    assert "task small: 16 rows, 8 distinct" in str(found)


def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path) -> None:
    pairs(tmp_path, "one", 2)
    pairs(tmp_path, "two", 2)
    (tmp_path / "two.train.jsonl").write_text('{"q": "good", "a": "x"}\n{"q": "bad"}\n')
    source = mixture(tmp_path, task("one") + task("two"))
    with pytest.raises(UserError, match=r"two\.train\.jsonl:2: column 'a' is missing"):
        load(source)
    assert len(load(source, skip_bad_rows=True).train.skipped) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (task("one"), "two tasks"),
        (task("one") + task("one"), "'one'.*twice"),
        (task("one") + task("two").replace("{}", ""), r"two.*\{\}"),
        (task("one") + task("two", more="rows = -1"), "rows"),
        (task("one") + task("two", more="weight = 3"), "weight"),
        ("temperature = 0.5\n" + task("one") + task("two"), "temperature"),
        ("heat = 2\n" + task("one") + task("two"), "heat"),
        (task("one") + task("two", "inner.mix.toml"), "mixture"),
        (task("one") + task("three"), "three"),
        ("task = 3\n", "list of tables"),
        ("[[task]\n", "TOML"),
    ],
)
def test_errors_of_a_mixture_name_what_is_wrong(tmp_path: Path, text: str, words: str) -> None:
    pairs(tmp_path, "one", 2)
    pairs(tmp_path, "two", 2)
    with pytest.raises(UserError, match=words):
        load(mixture(tmp_path, text))


def test_plain_text_is_cut_into_prompt_and_target(tmp_path: Path) -> None:
    pairs(tmp_path, "one", 2)
    texts = [" ".join(f"w{i}.{j}" for j in range(n)) for i, n in enumerate((1, 2, 40, 300) * 30)]
    (tmp_path / "notes.txt").write_text("\n\n".join(texts))
    part = '[[task]]\nname = "notes"\nsource = "notes.txt"\nprompt = "go on: {}"\ncharacters = 60\n'
    found = load(mixture(tmp_path, task("one") + part))
    pieces = [e for _, split in found.items() for e in split if e.task == "notes"]
    assert pieces
    cuts = set()
    for piece in pieces:
        assert piece.prompt is not None and piece.prompt.startswith("go on: ")
        given = piece.prompt.removeprefix("go on: ")
        assert given and piece.target and 0 < len(f"{given} {piece.target}") <= 60
        assert any(f"{given} {piece.target}" in text for text in texts)
        cuts.add(len(given))
    assert len(cuts) > 5  # the place varies
    words = {word for text in texts for word in text.split()}
    seen = {word for piece in pieces for word in f"{piece.prompt} {piece.target}".split()}
    assert len(words - seen) <= len(texts)  # only a single last word of a document may be left out


def test_plain_text_needs_characters(tmp_path: Path) -> None:
    pairs(tmp_path, "one", 2)
    (tmp_path / "notes.txt").write_text("\n\n".join(f"note {i}" for i in range(80)))
    bare = '[[task]]\nname = "notes"\nsource = "notes.txt"\n'
    with pytest.raises(UserError, match="plain text.*characters"):
        load(mixture(tmp_path, task("one") + bare))
    with pytest.raises(UserError, match="characters = 5"):
        load(mixture(tmp_path, task("one") + bare + "characters = 5\n"))
    with pytest.raises(UserError, match="rows have prompts"):
        load(mixture(tmp_path, task("one", more="characters = 50") + bare + "characters = 50\n"))


def test_a_mixture_of_test_sets_has_only_a_test_split(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.test.jsonl").write_text('{"input": "a", "target": "b"}\n', encoding="utf-8")
    (tmp_path / "stories.test.txt").write_text("word " * 40, encoding="utf-8")
    mix = tmp_path / "all.mix.toml"
    tasks = ['name = "one"\nsource = "one"', 'name = "two"\nsource = "two"']
    tasks.append('name = "stories"\nsource = "stories"\ncharacters = 50')
    mix.write_text("".join(f"[[task]]\n{task}\n" for task in tasks), encoding="utf-8")
    found = load(str(mix))
    assert not found.train and not found.validation
    assert {example.task for example in found.test} == {"one", "two", "stories"}
