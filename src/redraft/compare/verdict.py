"""What may be concluded about a setting against the baseline, and the sentences that say it.

``same`` means that an equivalence test at the stated margin passed. What neither an equivalence test nor a difference
test settles is ``undecided``. A comparison whose baseline does not beat the trivial baselines is inconclusive. An
advantage in speed counts only if no other setting of the baseline family is as good and as fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redraft.compare.format import plain, signed, times
from redraft.compare.results import Advice, Alternative, Difference, Ratio


@dataclass(frozen=True)
class Evidence:
    """The numbers about one setting that a verdict rests on."""

    family: str
    label: str  # of the setting
    baseline: str  # the baseline family
    reference: str  # label of the setting that quality is compared with
    speed_reference: str  # label of the setting that speed and compute are compared with
    metric: str  # label of the primary metric
    quality: Difference
    speedups: Mapping[int, Ratio]  # by batch size
    compute: float | None = None  # operations per token as a multiple of the reference's
    alternatives: Sequence[Alternative] = ()
    labels: Mapping[str, str] | None = None  # of the alternatives, by id

    @property
    def pace(self) -> dict[int, str]:
        """faster, slower or equal at each batch size, against the reference or an alternative that is as good."""
        words: dict[int, str] = {batch: ratio.word for batch, ratio in self.speedups.items()}
        for one in self.alternatives:
            words[one.batch] = "slower" if one.speedup.word == "faster" else "equal"
        return words

    @property
    def faster_at(self) -> tuple[int, ...]:
        """Batch sizes at which the setting is faster than every setting of the baseline family that is as good."""
        return tuple(batch for batch, word in self.pace.items() if word == "faster")


def advise(evidence: Evidence) -> Advice:
    """What the numbers recommend.

    ``switch`` to the family, ``keep`` the baseline, ``trade_off`` (faster but worse), ``depends`` on the batch size,
    or ``undecided``.
    """
    quality, words = evidence.quality.verdict, set(evidence.pace.values())
    if quality == "undecided":
        return "undecided"
    if quality == "worse":
        return "trade_off" if evidence.faster_at else "keep"
    if words == {"faster"}:
        return "switch"
    if evidence.alternatives and not evidence.faster_at:
        return "keep"
    return "keep" if words == {"slower"} and quality == "same" else "depends"


def advice_text(evidence: Evidence, advice: Advice) -> str:
    """The recommendation as a sentence."""
    e, pace = evidence, _pace_text(evidence)
    good = f"as good as {e.baseline}" if e.quality.verdict == "same" else f"better than {e.baseline}"
    loss = f"{e.family} loses {abs(e.quality.difference):.1f} {e.metric}"
    match advice:
        case "undecided":
            return (
                f"These data can't show whether {e.family} is as good as {e.baseline}. It {pace}. "
                "More test rows or more seeds can decide it."
            )
        case "trade_off":
            return f"Trade-off: {loss}, but {pace}."
        case "switch":
            return f"Choose {e.family}: it is {good} on these data and {pace}."
        case "keep":
            if e.quality.verdict == "worse":
                return f"Keep {e.baseline}: {loss}. It {pace}."
            return f"Keep {e.baseline}: {e.family} is {good} on these data, but {pace}."
    return f"{e.family} is {good} on these data. It {pace}."


def _pace_text(evidence: Evidence) -> str:
    """The speed as the end of a sentence whose subject is the family."""
    words, where = evidence.pace, evidence.faster_at
    others = _alternatives_text(evidence)
    if not words:
        return "was not timed"
    if set(words.values()) == {"faster"}:
        return "is faster at every batch size measured"
    if where:
        sizes = ", ".join(map(str, where))
        return f"is faster only at batch size {sizes}" + (f" ({others})" if others else "")
    if others:
        return f"has no advantage: {others}"
    if set(words.values()) == {"slower"}:
        return "is slower at every batch size measured"
    return "is not measurably faster at any batch size"


def _alternatives_text(evidence: Evidence) -> str:
    """Which settings of the baseline family take away the advantage, and where unless everywhere."""
    parts = []
    for label, found in _by_label(evidence):
        sizes = ", ".join(str(one.batch) for one in found)
        where = "" if len(found) == len(evidence.pace) else f" at batch size {sizes}"
        parts.append(f"{label} {_alternative_words(found)}{where}")
    return "; ".join(parts)


def _by_label(evidence: Evidence) -> list[tuple[str, list[Alternative]]]:
    labels = evidence.labels or {}
    found: dict[str, list[Alternative]] = {}
    for one in evidence.alternatives:
        found.setdefault(labels.get(one.setting, one.setting), []).append(one)
    return list(found.items())


def _alternative_words(found: Sequence[Alternative]) -> str:
    words = {one.speedup.word for one in found}
    fast = "faster" if words == {"faster"} else "as fast" if words == {"equal"} else "at least as fast"
    return f"is better and {fast}" if found[0].quality == "better" else f"scores no lower and is {fast}"


def sentence(evidence: Evidence) -> str:
    """All numbers in one sentence.

    ``masked, 12 steps: same BLEU within the margin of ±0.5 (difference ...); 3.1x faster at batch size 1; ...``
    """
    e = evidence
    parts = [quality_text(e.metric, e.quality), *(speed_text(batch, ratio) for batch, ratio in e.speedups.items())]
    parts += [f"{times(e.compute)} the compute per token"] if e.compute is not None else []
    compared = f"Compared with {e.reference}"
    compared += "" if e.reference == e.speed_reference else f", speed and compute with {e.speed_reference}"
    text = f"{e.label}: {'; '.join(parts)}. {compared}."
    for label, found in _by_label(e):
        factors = ", ".join(f"{times(one.speedup.ratio)} at batch size {one.batch}" for one in found)
        text += f" However, {label} {_alternative_words(found)} ({factors})."
    return text


def quality_text(metric: str, quality: Difference) -> str:
    """The quality part of a sentence."""
    q = quality
    span = f"difference {signed(q.difference)}, 95 % interval {signed(q.low)} to {signed(q.high)}"
    if q.verdict == "same":
        return f"same {metric} within the margin of ±{q.margin:g} ({span})"
    if q.verdict == "undecided":
        return f"{metric} undecided at the margin of ±{q.margin:g} ({span})"
    return f"{q.verdict} {metric} ({span})"


def speed_text(batch: int, ratio: Ratio) -> str:
    """The speed part of a sentence."""
    if ratio.word == "equal":
        return f"as fast at batch size {batch} ({times(ratio.ratio)}, within the noise)"
    if ratio.word == "faster":
        return f"{times(ratio.ratio)} faster at batch size {batch}"
    return f"{times(ratio.ratio)} the speed at batch size {batch}"


@dataclass(frozen=True)
class BaselineCheck:
    """The score of the baseline and of a trivial system on one metric."""

    name: str  # of the trivial system
    metric: str
    trivial: float
    baseline: float
    better: int = 1  # +1: higher is better

    @property
    def passed(self) -> bool:
        """The baseline is better."""
        return self.better * (self.baseline - self.trivial) > 0


def inconclusive_reasons(family: str, checks: Sequence[BaselineCheck]) -> tuple[str, ...]:
    """The trivial systems that the baseline family does not beat, one sentence each."""
    return tuple(
        f"{family} does not beat {check.name} ({check.metric} {plain(check.baseline)} against {plain(check.trivial)})"
        for check in checks
        if not check.passed
    )


def headline(inconclusive: Sequence[str], lines: Sequence[str], missing: int) -> str:
    """The first sentence of a report."""
    if inconclusive:
        return f"Inconclusive: {'; '.join(inconclusive)}. Give more data or a larger budget."
    if not lines:
        return "No verdict yet: the study is unfinished." if missing else "No verdict: nothing was compared."
    return lines[0]
