"""Planning by measured time: equal tokens, the largest size that can be trained, and a grid that fits."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from redraft.compare import grid, plan, time_budget
from redraft.compare.format import clock
from redraft.compare.plan import Plan
from redraft.compare.study import Study
from redraft.compare.time_budget import Costs, Probe, Workload
from redraft.errors import UserError
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item

STUDY = Study(data="x", minutes=10.0, batch_sizes=(1, 32))
SETTINGS = (
    DecodingConfig("autoregressive", family="autoregressive"),
    *(
        DecodingConfig("confidence", {"steps": steps}, candidates=count, family="masked")
        for steps in (1, 2, 4, 8, 16)
        for count in (1, 4)
    ),
)
DRAFT = Plan(
    tokens=0,
    preset="",
    vocab_size=1024,
    length=40,
    new_tokens=20,
    test_rows=500,
    validation_rows=200,
    timed_calls=12,
    train={},
    settings=SETTINGS,
)


def costs(seconds: float) -> Costs:
    return Costs({s.id: seconds for s in SETTINGS}, {s.id: seconds / 4 for s in SETTINGS}, 32)


def test_decoding_is_thinned_out_until_it_fits_and_no_further() -> None:
    roomy = time_budget.within(DRAFT, STUDY, costs(0.01), 100.0)
    assert roomy == DRAFT
    tight = time_budget.within(DRAFT, STUDY, costs(0.5), 100.0)
    assert costs(0.5).of(tight, STUDY) <= 100.0
    assert tight.test_rows >= time_budget.FEWEST_TEST and tight.validation_rows >= time_budget.FEWEST_VALIDATION
    hopeless = time_budget.within(DRAFT, STUDY, costs(50.0), 1.0)  # ends, with the least there is
    assert {s.family for s in hopeless.settings} == {"autoregressive", "masked"}


def test_small_data_keep_the_rows_they_have() -> None:
    small = replace(DRAFT, test_rows=30, validation_rows=20)
    assert time_budget.within(small, STUDY, costs(50.0), 1.0).test_rows == 30


def test_thinning_keeps_the_most_steps_and_the_baseline() -> None:
    fewer = grid.thin(SETTINGS, "autoregressive")
    assert {s.steps for s in fewer} == {None, 1, 4, 16}
    last = grid.thin(grid.thin(grid.thin(fewer, "autoregressive"), "autoregressive"), "autoregressive")
    assert last[0] == SETTINGS[0] and {s.candidates for s in last} == {1}


def test_thinning_keeps_something_of_every_family() -> None:
    """A family with short blocks has fewer steps to try than the others."""
    block = [DecodingConfig("confidence", {"steps": 2}, family="block")]
    settings = [*block, *(DecodingConfig("confidence", {"steps": s}, family="masked") for s in (2, 4, 8, 16))]
    assert {s.family for s in grid.core(settings, "autoregressive")} == {"block", "masked"}
    assert {s.steps for s in grid.core(settings, "autoregressive") if s.family == "masked"} == {4, 16}


def test_every_batch_size_and_every_test_row_costs_time() -> None:
    few, many = (costs(0.1).stages(DRAFT, replace(STUDY, batch_sizes=sizes)) for sizes in ((1, 32), (1, 8, 32)))
    assert many["timing"] == pytest.approx(few["timing"] + 13 * 0.1 * len(SETTINGS))
    scored = replace(costs(0.1), likelihood=0.02).of(DRAFT, replace(STUDY, seeds=2))
    assert scored - costs(0.1).of(DRAFT, replace(STUDY, seeds=2)) == pytest.approx(2 * 500 * 0.02)
    assert costs(1.0).stages(replace(DRAFT, test_rows=33), STUDY)["test"] == 2 * len(SETTINGS)  # two batches


class FakeModel:
    """Has a size and generates nothing."""

    def __init__(self, parameters: int, diffuses: bool) -> None:
        self.spec = SimpleNamespace(family=SimpleNamespace(schedule=1 if diffuses else None))
        self.network = SimpleNamespace(device=torch.device("cpu"), parameter_count=parameters)

    def settings(self, **given: Any) -> Any:
        return given

    def start(self, prompts: Any, settings: Any) -> list[Any]:
        return []


def measured(
    speed: float, minutes: float = 10.0, overhead: float = 0.0, row_tokens: float = 8.0, held: int = 50, **fields: Any
) -> Plan:
    def probe(family: str, size: str, pace: Any) -> Probe:
        count, diffuses = plan.parameters(size, DRAFT.vocab_size), family == "masked"
        slower = (2.0 if diffuses else 1.0) * (1.5 if pace.get("dropout") else 1.0)
        return Probe(speed / count / slower, overhead, FakeModel(count, diffuses))  # type: ignore[arg-type]

    study = replace(STUDY, minutes=minutes, **fields)
    items = [Item("a", ("b",), 3)] * 4
    table = {"validation_rows": 256, **study.train}

    def train(tokens: int) -> dict[str, Any]:
        return {"tokens": tokens, "validate_every": max(1, tokens // 8), **table}

    begun = time.monotonic()
    return time_budget.fit_plan(study, DRAFT, probe, Workload(items, row_tokens, held), train, begun)


def test_a_faster_machine_trains_a_larger_model_on_equal_tokens() -> None:
    slow, fast = measured(3e9), measured(1e12)
    assert plan.SIZES.index(slow.preset) < plan.SIZES.index(fast.preset)
    for found in (slow, fast):
        assert found.train["tokens"] == found.tokens
        assert found.total_seconds <= 600
        assert found.seconds["training"] > 0.5 * 600 * time_budget.SLACK
    assert fast.tokens >= plan.TOKENS_PER_PARAMETER * plan.parameters(fast.preset, DRAFT.vocab_size)


def test_more_seeds_get_fewer_tokens_each() -> None:
    assert measured(1e10, seeds=3).tokens == pytest.approx(measured(1e10).tokens / 3, rel=0.05)


def test_dropouts_to_try_share_the_minutes_and_a_constraint_takes_its_part_of_decoding() -> None:
    assert measured(1e10, dropouts=(0.1, 0.3)).tokens == pytest.approx(measured(1e10).tokens / 2, rel=0.05)
    free, bound = (costs(0.1).of(DRAFT, replace(STUDY, constraint=c)) for c in ({}, {"length": "1-5"}))
    assert bound > free


def test_what_a_run_takes_beside_its_updates_is_counted() -> None:
    """Reading and building, eight validations, and the likelihood of the test rows: by hand, from the speeds."""
    bare, slow = measured(1e10), measured(1e10, overhead=20.0)
    each = plan.parameters(bare.preset, DRAFT.vocab_size) * 3 / 1e10  # seconds that a token takes both families
    assert slow.preset == bare.preset
    assert bare.tokens - slow.tokens == pytest.approx(2 * 20.0 / each, rel=0.05)
    long = measured(1e10, row_tokens=1000.0, held=200)
    assert bare.train["validation_rows"] == 256 and long.train["validation_rows"] < 200
    for found, row_tokens, held in ((bare, 8.0, 50), (long, 1000.0, 200)):
        rows = min(held, found.train["validation_rows"])
        checks = 8 * rows * row_tokens * (1 + 2 * plan.CHECK_SAMPLES) / time_budget.UPDATE * each / 3
        assert found.seconds["training"] == pytest.approx(found.tokens * each + checks, rel=0.02)
        scores = found.test_rows * row_tokens * (1 + 2 * plan.LIKELIHOOD_SAMPLES) / time_budget.UPDATE * each / 3
        assert found.seconds["likelihood"] == pytest.approx(scores)
        assert found.total_seconds <= 600 * time_budget.SLACK + 1
    asked = measured(1e10, row_tokens=1000.0, held=200, train={"validation_rows": 60})
    assert asked.train["validation_rows"] == 60 and asked.tokens < long.tokens  # the study's own wish is kept
    dropping = measured(1e10, train={"dropout": 0.1})  # half as slow again: measured as it will be trained
    assert dropping.preset == bare.preset and dropping.tokens == pytest.approx(bare.tokens / 1.5, rel=0.05)


def test_too_little_time_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="--minutes"):
        measured(1e6, minutes=0.5)


def test_clock() -> None:
    assert (clock(75), clock(3675), clock(0.2)) == ("1:15", "1:01:15", "0:00")


@pytest.mark.parametrize(("width", "rate"), [(128, 1.5e-3), (256, 1.5e-3), (1024, 1.5e-3 / 4), (4096, 1.5e-3 / 16)])
def test_the_wider_the_checkpoint_the_less_it_is_moved(width: int, rate: float) -> None:
    assert plan.learning_rate(width, parameters=4_000_000) == pytest.approx(rate)
    assert plan.learning_rate(width, parameters=135_000_000) <= 2e-4 < plan.learning_rate(width, adapters=True)
