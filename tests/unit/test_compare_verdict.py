"""A verdict follows from the numbers and claims no more than they show."""

from __future__ import annotations

import pytest

from redraft.compare.format import signed
from redraft.compare.results import Alternative, Difference, Ratio, Verdict
from redraft.compare.verdict import (
    BaselineCheck,
    Evidence,
    advice_text,
    advise,
    headline,
    inconclusive_reasons,
    sentence,
    speed_text,
)

FASTER, SLOWER, EQUAL = Ratio(3.1, 2.8, 3.4), Ratio(0.9, 0.85, 0.95), Ratio(1.02, 0.9, 1.1)


def evidence(
    quality: Verdict,
    speedups: dict[int, Ratio],
    alternatives: list[Alternative] | None = None,
    difference: float = -0.1,
    compute: float | None = None,
) -> Evidence:
    low, high = difference - 0.3, difference + 0.3
    return Evidence(
        family="masked",
        label="masked, 12 steps",
        baseline="autoregressive",
        reference="autoregressive, beam 4",
        speed_reference="autoregressive, beam 4",
        metric="BLEU",
        quality=Difference(difference, low, high, 0.5, 0.1, 0.1, 0.1, quality, preliminary=False),
        speedups=speedups,
        compute=compute,
        alternatives=alternatives or [],
        labels={"greedy": "autoregressive, greedy"},
    )


def greedy(batch: int, better: bool = True, low: float = 1.3) -> Alternative:
    return Alternative(batch, "greedy", "better" if better else "undecided", Ratio(1.5, low, 1.7))


def test_a_ratio_whose_interval_contains_one_is_no_speed_up() -> None:
    assert [ratio.word for ratio in (FASTER, SLOWER, EQUAL)] == ["faster", "slower", "equal"]
    assert "faster" not in speed_text(8, EQUAL)


@pytest.mark.parametrize(
    "quality, speedups, advice",
    [
        ("same", {1: FASTER}, "switch"),
        ("better", {1: FASTER, 32: FASTER}, "switch"),
        ("same", {1: SLOWER}, "keep"),
        ("better", {1: SLOWER}, "depends"),
        ("worse", {1: SLOWER}, "keep"),
        ("worse", {1: EQUAL, 32: SLOWER}, "keep"),
        ("worse", {1: FASTER, 32: SLOWER}, "trade_off"),
        ("undecided", {1: FASTER}, "undecided"),
        ("same", {1: FASTER, 32: SLOWER}, "depends"),
        ("same", {}, "depends"),
        ("worse", {}, "keep"),
    ],
)
def test_advice(quality: Verdict, speedups: dict[int, Ratio], advice: str) -> None:
    assert advise(evidence(quality, speedups)) == advice


def test_an_alternative_takes_away_the_advantage() -> None:
    speedups = {1: Ratio(1.5, 1.3, 1.9), 32: Ratio(1.5, 1.4, 1.6)}
    both = evidence("worse", speedups, [greedy(1), greedy(32)])
    assert both.pace == {1: "slower", 32: "slower"} and both.faster_at == ()
    assert advise(both) == "keep"
    partly = evidence("worse", speedups, [greedy(32)])
    assert partly.pace == {1: "faster", 32: "slower"} and partly.faster_at == (1,)
    assert advise(partly) == "trade_off"
    as_fast = evidence("worse", speedups, [greedy(1, low=0.9)])
    assert as_fast.pace == {1: "equal", 32: "faster"}


@pytest.mark.parametrize("quality", ["same", "better", "worse", "undecided"])
def test_a_setting_with_an_alternative_everywhere_is_never_recommended(quality: Verdict) -> None:
    found = advise(evidence(quality, {1: FASTER}, [greedy(1, better=False, low=0.9)]))
    assert found == ("undecided" if quality == "undecided" else "keep")


@pytest.mark.parametrize("quality", ["better", "worse", "undecided"])
def test_same_is_claimed_only_after_an_equivalence_test(quality: Verdict) -> None:
    one = evidence(quality, {}, difference=2.0)
    assert quality in sentence(one) and "same" not in sentence(one)
    assert "is as good as autoregressive on these data" not in advice_text(one, advise(one))


def test_the_sentences_of_a_verdict() -> None:
    """The only test that fixes the wording."""
    one = evidence("same", {1: FASTER, 32: SLOWER}, compute=2.0)
    assert sentence(one) == (
        "masked, 12 steps: same BLEU within the margin of ±0.5 (difference −0.10, 95 % interval −0.40 to +0.20); 3.1x "
        "faster at batch size 1; 0.90x the speed at batch size 32; 2.0x the compute per token. Compared with "
        "autoregressive, beam 4."
    )
    assert advice_text(one, advise(one)) == (
        "masked is as good as autoregressive on these data. It is faster only at batch size 1."
    )
    two = evidence("worse", {1: FASTER, 32: FASTER}, [greedy(1), greedy(32)], difference=-11.7)
    assert sentence(two).endswith(
        "However, autoregressive, greedy is better and faster (1.5x at batch size 1, 1.5x at batch size 32)."
    )
    assert advice_text(two, advise(two)) == (
        "Keep autoregressive: masked loses 11.7 BLEU. It has no advantage: autoregressive, greedy is better and faster."
    )


def test_a_study_is_inconclusive_if_the_baseline_does_not_beat_a_trivial_system() -> None:
    beaten = BaselineCheck("copying the input", "BLEU", 2.0, 30.0)
    tie = BaselineCheck("the nearest training example", "BLEU", 30.0, 30.0)
    bits = BaselineCheck("a 6-gram model", "bits per byte", 1.9, 2.1, better=-1)
    assert [check.passed for check in (beaten, tie, bits)] == [True, False, False]
    assert inconclusive_reasons("autoregressive", [beaten]) == ()
    reasons = inconclusive_reasons("autoregressive", [beaten, tie, bits])
    assert len(reasons) == 2 and "nearest" in reasons[0] and "6-gram" in reasons[1]
    assert "masked: better" not in headline(reasons, ["masked: better"], 0)


def test_headline_of_unfinished_and_finished_studies() -> None:
    assert headline([], [], 3) != headline([], [], 0)
    assert headline([], ["first", "second"], 0) == "first"


def test_signs() -> None:
    assert (signed(0.0), signed(-0.001), signed(1.234), signed(-12.34)) == ("0.00", "0.00", "+1.23", "−12.3")
