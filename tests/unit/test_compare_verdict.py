"""The words of a verdict follow from the numbers, and promise no more than they hold."""

from __future__ import annotations

import pytest

from redraft.compare.verdict import Floor, Quality, Ratio, Rival, advice, headline, sentence, signed, speed_words, voids


def quality(verdict: str, difference: float = -0.1) -> Quality:
    return Quality("BLEU", verdict, difference, difference - 0.3, difference + 0.3, 0.5)


FASTER, SLOWER, EQUAL = Ratio(1, 3.1, 2.8, 3.4), Ratio(32, 0.9, 0.85, 0.95), Ratio(8, 1.02, 0.9, 1.1)


def test_the_sentence_of_the_issue() -> None:
    line = sentence("masked, 12 steps", quality("same"), [FASTER, SLOWER], "autoregressive, greedy", 2.0)
    assert line.startswith("masked, 12 steps: same BLEU within the margin ±0.5")
    assert "3.1x faster at batch 1, 0.90x the speed at batch 32, 2.0x the compute a token" in line
    assert "autoregressive, greedy" in line


@pytest.mark.parametrize("verdict", ["better", "worse", "undecided"])
def test_same_is_said_only_after_an_equivalence_test(verdict: str) -> None:
    line = sentence("masked", quality(verdict, 2.0), [], "autoregressive", None)
    assert verdict in line and "same" not in line
    assert "same" not in advice("masked", "autoregressive", quality(verdict, 2.0), [FASTER]).lower()
    assert "as good as" not in advice("masked", "autoregressive", quality(verdict), []).replace("is as good", "")


def test_an_interval_around_one_is_no_speedup() -> None:
    assert EQUAL.word == "equal" and "faster" not in speed_words(EQUAL)


@pytest.mark.parametrize(
    "verdict, ratios, begins",
    [
        ("same", [FASTER], "Choose masked"),
        ("better", [FASTER], "Choose masked"),
        ("same", [SLOWER], "Keep autoregressive"),
        ("worse", [SLOWER], "Keep autoregressive"),
        ("worse", [FASTER, SLOWER], "masked loses"),
        ("undecided", [FASTER], "The data can't tell"),
        ("same", [FASTER, SLOWER], "masked is as good"),
    ],
)
def test_advice(verdict: str, ratios: list[Ratio], begins: str) -> None:
    assert advice("masked", "autoregressive", quality(verdict, -2.0), ratios).startswith(begins)


def test_worse_and_faster_somewhere_is_a_trade() -> None:
    assert "trade" in advice("masked", "autoregressive", quality("worse", -2.0), [FASTER, SLOWER])
    assert "trade" not in advice("masked", "autoregressive", quality("worse", -2.0), [EQUAL, SLOWER])


def rival(batch: int, better: bool = True, low: float = 1.3) -> Rival:
    return Rival("autoregressive, greedy", better, Ratio(batch, 1.5, low, 1.7))


def test_what_is_dominated_is_no_trade() -> None:
    ratios, worse = [Ratio(1, 1.5, 1.3, 1.9), Ratio(32, 1.5, 1.4, 1.6)], quality("worse", -11.7)
    both = [rival(1), rival(32)]
    text = advice("masked", "autoregressive", worse, ratios, both)
    assert text == "Keep autoregressive: masked loses 11.7 BLEU, and autoregressive, greedy is better and faster."
    partly = advice("masked", "autoregressive", worse, ratios, [rival(32)])
    assert "faster at batch 1 only" in partly and "at batch 32 autoregressive, greedy is better" in partly
    assert "trade" in partly and "trade" not in text
    line = sentence("masked", worse, ratios, "autoregressive, beam 4", None, both)
    assert line.endswith("But autoregressive, greedy is better and faster (1.5x at batch 1, 1.5x at batch 32).")


@pytest.mark.parametrize("verdict", ["same", "better", "worse", "undecided"])
def test_nothing_dominated_is_recommended(verdict: str) -> None:
    text = advice("masked", "autoregressive", quality(verdict, -2.0), [FASTER], [rival(1, False, 0.9)])
    assert "autoregressive, greedy scores no lower and is as fast" in text
    assert "Choose masked" not in text and "trade" not in text and "it is faster" not in text


def test_void_where_the_baseline_does_not_beat_a_floor() -> None:
    beaten = Floor("copying the input", "BLEU", 2.0, 30.0)
    tie = Floor("the nearest training example", "BLEU", 30.0, 30.0)
    bits = Floor("a 6-gram model", "bits per byte", 1.9, 2.1, better=-1)
    assert voids("autoregressive", [beaten]) == []
    reasons = voids("autoregressive", [beaten, tie, bits])
    assert len(reasons) == 2 and "nearest" in reasons[0] and "6-gram" in reasons[1]
    assert headline(reasons, ["masked: better"], 0).startswith("Void")
    assert "masked: better" not in headline(reasons, ["masked: better"], 0)


def test_headline_of_unfinished_and_finished_studies() -> None:
    assert "unfinished" in headline([], [], 3)
    assert headline([], ["first", "second"], 0) == "first"


def test_signs() -> None:
    assert (signed(0.0), signed(-0.001), signed(1.234), signed(-12.34)) == ("0.00", "0.00", "+1.23", "−12.3")
