"""Analyses of claims: their verdicts follow from the values as their rules say. All values are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from redraft.compare.report import render_html
from redraft.config import build, read_toml
from redraft.registry import find
from redraft.shipped import named_models
from redraft.study.analyses.data_needed import crossing
from redraft.study.analyses.pareto import front_of
from redraft.study.cells.base import ordered
from redraft.study.cells.controlled import KINDS, thirds
from redraft.study.cells.texts import Texts
from redraft.study.cells.train import Train
from redraft.study.claim import BUDGETS, Claim, names, path_of
from redraft.study.experiment import Found, analysis_of
from redraft.study.finding import VERDICTS, StudyRecord
from redraft.study.report import report
from tests.made_study import Placeless, finding, shrunk


def verdict(name: str, quality: Any) -> str:
    return finding(Placeless(Claim.load(name, seeds=2)), quality).verdict


def model(cell: Any) -> str:
    return str(cell.trained.model)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", names())
def test_what_a_claim_asks_for_can_be_built(name: str, budget: str) -> None:
    """Recipes of training without unknown keys, samplers without unknown options."""
    if budget == "shipped" and budget not in read_toml(path_of(name))["budgets"]:
        return  # no shipped checkpoints are of use for it
    experiment = Placeless(Claim.load(name, budget))
    wanted = {one for model in experiment.claim.models.values() for one in model.checkpoint.values()}
    if missing := wanted - named_models().keys():
        pytest.skip(f"not installed: {', '.join(missing)}")
    cells = ordered(analysis_of(experiment.claim).cells(experiment, Found()))
    for cell in cells:
        if isinstance(cell, Train) and not cell.start:
            assert cell.recipe(Path("anywhere")).family["name"] == cell.family["name"]
        if isinstance(cell, Texts):
            assert build(find("samplers", cell.config.sampler), cell.config.options, name)
            assert cell.new_tokens + 8 <= cell.data.length
    assert len({cell.id for cell in cells}) == len(cells) > 0


@pytest.mark.parametrize("name", names())
def test_every_claim_concludes_and_is_reported(name: str) -> None:
    experiment = Placeless(shrunk(name))
    found = finding(experiment, lambda cell, words: 0.8)
    assert found.verdict in VERDICTS and found.text.endswith(".") and found.tables
    claim = experiment.claim
    texts = (claim.claim, claim.source, claim.compares, "a rule", "small", claim.seeds)
    record = StudyRecord(name, *texts, found, {}, "a command", "2026-01-01", 1.0, 1)
    assert StudyRecord.of_json(record.to_json(), "here") == record
    page = render_html(report([record]))
    assert found.tables[0].title in page.replace("&amp;", "&")


@pytest.mark.parametrize("name", ["steps", "short", "length", "grid", "latency", "compute", "control", "zero-shot"])
def test_models_that_learned_nothing_make_a_claim_void(name: str) -> None:
    found = finding(Placeless(shrunk(name)), lambda cell, words: 0.0)
    assert found.verdict == "open" and "void on e2e" in "".join(found.caveats)


@pytest.mark.parametrize(("needed", "expected"), [(4, "holds"), (32, "not seen")])
def test_steps(needed: int, expected: str) -> None:
    """The quality rises until ``needed`` steps; the adaptive sampler takes as many passes as words."""

    def quality(cell: Any, words: int) -> float:
        return 0.9 if cell.config.sampler != "confidence" or cell.config.steps >= needed else 0.5

    found = finding(Placeless(Claim.load("steps")), quality)
    enough = [row for row in found.tables[0].rows if "enough" in row[-1] and "confidence" not in row[1]]
    assert enough and f"{float(needed)}" in {row[2] for row in enough}
    assert verdict("steps", quality) in (expected, "in part")


def test_steps_that_all_are_equal_need_one() -> None:
    found = finding(Placeless(Claim.load("steps")), lambda cell, words: 1.0)
    assert ("e2e", "masked, 1 step", "1.0") in {row[:3] for row in found.tables[0].rows if "enough" in row[-1]}


@pytest.mark.parametrize(("short", "expected"), [(0.4, "holds"), (0.9, "not seen")])
def test_short_answers(short: float, expected: str) -> None:
    def quality(cell: Any, words: int) -> float:
        return short if model(cell) == "masked" and words < 19 else 0.9

    assert verdict("short", quality) == expected


@pytest.mark.parametrize(("long", "few", "expected"), [(0.4, 0.9, "holds"), (0.9, 0.4, "not seen")])
def test_length_against_steps(long: float, few: float, expected: str) -> None:
    def quality(cell: Any, words: int) -> float:
        if model(cell) != "masked":
            return 0.9
        return min(long if words > 30 else 0.9, few if cell.config.steps <= 8 else 0.9)

    assert verdict("length", quality) == expected


def test_speed_counts_only_at_equal_quality() -> None:
    """Four steps take 0.04 s in the made-up timing and autoregression 0.1 s: 2.5 times as fast."""
    equal = finding(Placeless(Claim.load("latency")), lambda cell, words: 1.0)
    assert equal.verdict == "in part"
    factors = [n for n in equal.numbers if n.metric == "latency factor at batch 1"]
    assert [round(n.value, 2) for n in factors] == [2.5]
    assert verdict("cost", lambda cell, words: 1.0) == "holds"  # 1.67 times as cheap is enough there
    assert verdict("cost", lambda cell, words: 0.9 if model(cell) == "autoregressive" else 0.5) == "not seen"


def test_compute_counts_gain_and_operations() -> None:
    def quality(cell: Any, words: int) -> float:
        return 0.95 if model(cell) == "masked" and cell.config.steps == 1 else 0.7

    found = finding(Placeless(Claim.load("compute")), quality)
    assert found.verdict in ("holds", "not seen")  # by the operations of a pass over the whole answer
    cost = {n.setting: n.value for n in found.numbers if n.metric == "operations a token"}
    assert cost["masked, 2 steps"] > cost["masked, 1 step"] > 0
    assert verdict("compute", lambda cell, words: 0.9 if model(cell) != "masked" else 0.5) == "not seen"


def test_blocks_and_the_whole_answer() -> None:
    assert verdict("blocks", lambda cell, words: 1.0) == "holds"  # every size is free

    def as_claimed(cell: Any, words: int) -> float:
        whole = not cell.config.options.get("block")
        return 0.9 if model(cell) != "masked" or whole == (cell.data.task == "sudoku") else 0.4

    assert verdict("blocks", as_claimed) == "holds"
    assert verdict("blocks", lambda cell, words: 1.3 - as_claimed(cell, words)) == "not seen"


def test_labels_and_tasks_of_one_model() -> None:
    assert verdict("understanding", lambda cell, words: 0.9 if model(cell) == "masked" else 0.6) == "holds"
    assert verdict("understanding", lambda cell, words: 0.6 if model(cell) == "masked" else 0.9) == "not seen"
    assert verdict("cross-attention", lambda cell, words: 1.0) == "holds"
    assert verdict("cross-attention", lambda cell, words: 0.5 if model(cell) == "several" else 0.9) == "not seen"


@pytest.mark.parametrize(("behind", "expected"), [(0.0, "not seen"), (0.3, "in part")])
def test_the_data_that_a_model_needs(behind: float, expected: str) -> None:
    def quality(cell: Any, words: int) -> float:
        share = cell.trained.data.train_rows / 12_000
        return 0.2 + 0.6 * share - (behind if model(cell) == "masked" else 0.0)

    assert verdict("zero-shot", quality) == expected


def test_a_curve_crosses_a_goal_between_its_points() -> None:
    assert crossing((0.1, 0.5, 1.0), (10.0, 20.0, 30.0), 25.0) == 0.75
    assert crossing((0.1, 0.5), (10.0, 20.0), 5.0) == 0.1
    assert crossing((0.1, 0.5), (10.0, 20.0), 21.0) == float("inf")


def test_memory_without_quality_is_half_of_the_claim() -> None:
    assert verdict("latent", lambda cell, words: 1.0) == "holds"  # an eighth of the memory in the made-up values
    assert verdict("latent", lambda cell, words: 0.3 if model(cell) == "latent" else 0.9) == "in part"


def test_control() -> None:
    assert verdict("control", lambda cell, words: 0.9 if model(cell) == "masked" else 0.6) == "holds"
    assert verdict("control", lambda cell, words: 0.6 if model(cell) == "masked" else 0.9) == "not seen"
    assert thirds("a b c d e f") == ("a b", "c d", "e f")
    for kind, make in KINDS.items():
        assert all(make("The old man sees the red dog again today.").values()), kind


def test_repeats_and_speed() -> None:
    assert verdict("repeats", lambda cell, words: 1.0) == "not seen"  # equal curves
    found = finding(Placeless(Claim.load("speed")), lambda cell, words: 1.0)
    assert found.verdict == "open" and "in place of 8b" in found.caveats[0]


def test_the_front_holds_what_nothing_beats() -> None:
    class Point:
        def __init__(self, passes: float, value: float) -> None:
            self.passes, self.value = passes, value

    points: Any = [Point(1, 10.0), Point(2, 9.0), Point(2, 12.0), Point(4, 12.0), Point(8, 13.0)]
    assert [(p.passes, p.value) for p in front_of(points)] == [(1, 10.0), (2, 12.0), (8, 13.0)]
