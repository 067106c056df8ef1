"""From numbers to words: what may be said, in one sentence, about a setting against the baseline.

The words are strict. *Same* means that an equivalence test at the stated margin passed. Anything that neither an
equivalence test nor a difference test settles is *undecided*. A comparison whose baseline is not above the floors is
void.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Quality:
    """The first metric of a setting against the baseline's; positive differences are improvements."""

    metric: str
    verdict: str  # same | better | worse | undecided
    difference: float
    low: float
    high: float
    margin: float


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the baseline, at a batch size, with its interval."""

    batch: int
    times: float
    low: float
    high: float

    @property
    def word(self) -> str:
        """faster | slower | equal, the last where the interval holds 1."""
        return "faster" if self.low > 1 else "slower" if self.high < 1 else "equal"


@dataclass(frozen=True)
class Floor:
    """What a trivial system scores and what the baseline scores, on one metric."""

    name: str
    metric: str
    floor: float
    baseline: float
    better: int = 1  # +1: higher is better

    @property
    def passed(self) -> bool:
        return self.better * (self.baseline - self.floor) > 0


def voids(baseline: str, floors: Sequence[Floor]) -> list[str]:
    """Why a comparison means nothing: floors that its baseline does not beat. Empty where it beats them all."""
    return [
        f"{baseline} does not beat {f.name} ({f.metric} {_number(f.baseline)} against {_number(f.floor)})"
        for f in floors
        if not f.passed
    ]


def sentence(label: str, quality: Quality | None, ratios: Sequence[Ratio], baseline: str, compute: float | None) -> str:
    """One line: ``masked, 12 steps: same BLEU within the margin ±0.5, 3.1x faster at batch 1, 0.9x at batch 32``.

    Args:
        compute: counted operations a token as a multiple of the baseline's.
    """
    parts = [quality_words(quality) if quality else "quality was not measured"]
    parts += [speed_words(ratio) for ratio in ratios]
    if compute is not None:
        parts.append(f"{_times(compute)} the compute a token")
    return f"{label}: {', '.join(parts)} (against {baseline})."


def quality_words(quality: Quality) -> str:
    """The quality part of a sentence."""
    q = quality
    span = f"difference {signed(q.difference)}, 95 % interval {signed(q.low)} to {signed(q.high)}"
    if q.verdict == "same":
        return f"same {q.metric} within the margin ±{q.margin:g} ({span})"
    if q.verdict in ("better", "worse"):
        return f"{q.verdict} {q.metric} ({span})"
    return f"{q.metric} undecided at the margin ±{q.margin:g} ({span})"


def speed_words(ratio: Ratio) -> str:
    """The speed part of a sentence."""
    if ratio.word == "equal":
        return f"as fast within the noise at batch {ratio.batch} ({_times(ratio.times)})"
    if ratio.word == "faster":
        return f"{_times(ratio.times)} faster at batch {ratio.batch}"
    return f"{_times(ratio.times)} the speed at batch {ratio.batch}"


def advice(family: str, baseline: str, quality: Quality, ratios: Sequence[Ratio]) -> str:
    """What a person who must choose may take from it."""
    words = [r.word for r in ratios]
    always, never = all(w == "faster" for w in words), all(w == "slower" for w in words)
    where = ", ".join(str(r.batch) for r in ratios if r.word == "faster")
    if not words:
        fast = "its speed was not measured"
    elif always:
        fast = "it is faster at every batch size measured"
    elif never:
        fast = "it is slower at every batch size measured"
    elif where:
        fast = f"it is faster at batch {where} only"
    else:
        fast = "it is not measurably faster at any batch size"
    if quality.verdict == "undecided":
        return f"The data can't tell whether {family} is as good as {baseline}; {fast}. More test rows or seeds would."
    if quality.verdict == "worse":
        gained = where or always
        loss = f"{family} loses {abs(quality.difference):.1f} {quality.metric}"
        return f"{loss}, but {fast}: a trade to weigh." if gained else f"Keep {baseline}: {loss} and {fast}."
    good = f"as good as {baseline}" if quality.verdict == "same" else f"better than {baseline}"
    if always:
        return f"Choose {family}: it is {good} on these data and {fast}."
    if never and quality.verdict == "same":
        return f"Keep {baseline}: {family} is {good} on these data, but {fast}."
    return f"{family} is {good} on these data; {fast}."


def headline(void: Sequence[str], lines: Sequence[str], missing: int) -> str:
    """The first sentence of a report."""
    if void:
        return f"Void, nothing can be concluded: {'; '.join(void)}. Give more data or a larger budget."
    if not lines:
        return "No verdict yet: the study is unfinished." if missing else "No verdict: nothing was compared."
    return lines[0]


def signed(value: float) -> str:
    """With its sign and two digits after the point, or one from ten on; a proper minus sign."""
    text = f"{value:+.2f}" if abs(value) < 10 else f"{value:+.1f}"
    return text.replace("-", "−") if float(text) else text.lstrip("+-")


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def _times(value: float) -> str:
    digits = 2 if value < 0.995 else 1 if value < 99.5 else 0
    return f"{value:.{digits}f}x"
