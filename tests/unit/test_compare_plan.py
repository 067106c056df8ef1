"""Planning by measured time: equal tokens, the largest size that can be trained, a grid that fits."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from redraft.compare import plan
from redraft.compare.material import Item
from redraft.compare.plan import Costs, Plan
from redraft.compare.study import Setting, Study
from redraft.errors import UserError

STUDY = Study(data="x", minutes=10.0)
SETTINGS = (
    Setting("autoregressive", "autoregressive"),
    *(Setting("masked", "confidence", {"steps": s}, c) for s in (1, 2, 4, 8, 16) for c in (1, 4)),
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
    roomy = plan.within(DRAFT, STUDY, costs(0.01), 100.0)
    assert roomy == DRAFT
    tight = plan.within(DRAFT, STUDY, costs(0.5), 100.0)
    assert costs(0.5).of(tight, STUDY) <= 100.0
    assert tight.test_rows >= plan.FEWEST_TEST and tight.validation_rows >= plan.FEWEST_VALIDATION
    hopeless = plan.within(DRAFT, STUDY, costs(50.0), 1.0)  # ends, with the least there is
    assert {s.family for s in hopeless.settings} == {"autoregressive", "masked"}


def test_small_data_keep_the_rows_they_have() -> None:
    small = replace(DRAFT, test_rows=30, validation_rows=20)
    assert plan.within(small, STUDY, costs(50.0), 1.0).test_rows == 30


def test_thinning_keeps_the_most_steps_and_the_baseline() -> None:
    fewer = plan.thin(SETTINGS, "autoregressive")
    assert {s.steps for s in fewer} == {None, 1, 4, 16}
    last = plan.thin(plan.thin(plan.thin(fewer, "autoregressive"), "autoregressive"), "autoregressive")
    assert last[0] == SETTINGS[0] and {s.candidates for s in last} == {1}


class FakeModel:
    """Has a size and answers at once."""

    def __init__(self, parameters: int) -> None:
        self.parameters = parameters
        self.network = SimpleNamespace(device=__import__("torch").device("cpu"))

    def settings(self, **given: Any) -> Any:
        return given

    def draft(self, prompts: Any, settings: Any) -> list[Any]:
        return []


def measured(speed: float, minutes: float = 10.0, **fields: Any) -> Plan:
    def probe(family: str, size: str) -> tuple[float, Any]:
        count = plan.parameters(size, DRAFT.vocab_size)
        slower = 2.0 if family == "masked" else 1.0
        return speed / count / slower, FakeModel(count)

    study = replace(STUDY, minutes=minutes, **fields)
    items = [Item("a", ("b",), 3)] * 4
    return plan.measured(study, DRAFT, probe, items, lambda tokens: {"tokens": tokens}, time.monotonic())


def test_a_faster_machine_trains_a_larger_model_on_equal_tokens() -> None:
    slow, fast = measured(3e9), measured(1e12)
    assert plan.SIZES.index(slow.preset) < plan.SIZES.index(fast.preset)
    for found in (slow, fast):
        assert found.train["tokens"] == found.tokens
        assert found.eta_seconds <= 600
        assert found.seconds["training"] > 0.5 * 600 * plan.SLACK
    assert fast.tokens >= plan.TOKENS_PER_PARAMETER * plan.parameters(fast.preset, DRAFT.vocab_size)


def test_more_seeds_get_fewer_tokens_each() -> None:
    assert measured(1e10, seeds=3).tokens == pytest.approx(measured(1e10).tokens / 3, rel=0.05)


def test_dropouts_to_try_share_the_minutes_and_a_constraint_takes_its_part_of_decoding() -> None:
    assert measured(1e10, dropouts=(0.1, 0.3)).tokens == pytest.approx(measured(1e10).tokens / 2, rel=0.05)
    free, bound = (costs(0.1).of(DRAFT, replace(STUDY, constraint=c)) for c in ({}, {"length": "1-5"}))
    assert bound > free


def test_too_little_time_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(UserError, match="--minutes"):
        measured(1e6, minutes=0.5)


def test_clock() -> None:
    assert (plan.clock(75), plan.clock(3675), plan.clock(0.2)) == ("1:15", "1:01:15", "0:00")
