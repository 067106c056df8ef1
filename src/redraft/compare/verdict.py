"""From numbers to words: what may be said, in one sentence, about a setting against the baseline.

The words are strict. *Same* means that an equivalence test at the stated margin passed. Anything that neither an
equivalence test nor a difference test settles is *undecided*. A comparison whose baseline is not above the floors is
void. *Faster* counts only where no setting of the baseline family that was tested is as good and as fast: a setting
that is dominated is no trade.
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
class Rival:
    """A setting of the baseline family that leaves another setting no advantage in speed at a batch size.

    It scores no lower, and the other is not measurably faster.
    """

    label: str
    better: bool  # shown to be; else it scores no lower
    speed: Ratio  # how many times as fast as the other; never slower


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


def sentence(
    label: str,
    quality: Quality | None,
    ratios: Sequence[Ratio],
    baseline: str,
    compute: float | None,
    rivals: Sequence[Rival] = (),
) -> str:
    """One line: ``masked, 12 steps: same BLEU within the margin ±0.5, 3.1x faster at batch 1, 0.9x at batch 32``.

    Args:
        compute: counted operations a token as a multiple of the baseline's.
        rivals: at most one at each batch size.
    """
    parts = [quality_words(quality) if quality else "quality was not measured"]
    parts += [speed_words(ratio) for ratio in ratios]
    if compute is not None:
        parts.append(f"{_times(compute)} the compute a token")
    beaten = [
        f"{rival_words(mine)} ({', '.join(f'{_times(r.speed.times)} at batch {r.speed.batch}' for r in mine)})"
        for mine in _by_label(rivals)
    ]
    return f"{label}: {', '.join(parts)} (against {baseline})." + (f" But {'; '.join(beaten)}." if beaten else "")


def rival_words(rivals: Sequence[Rival]) -> str:
    """What is to be said of one rival, at one batch size or several: ``greedy is better and faster``."""
    words = {r.speed.word for r in rivals}
    fast = "faster" if words == {"faster"} else "as fast" if words == {"equal"} else "at least as fast"
    return f"{rivals[0].label} {'is better and' if rivals[0].better else 'scores no lower and is'} {fast}"


def _by_label(rivals: Sequence[Rival]) -> list[list[Rival]]:
    return [[r for r in rivals if r.label == label] for label in dict.fromkeys(r.label for r in rivals)]


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


def advice(family: str, baseline: str, quality: Quality, ratios: Sequence[Ratio], rivals: Sequence[Rival] = ()) -> str:
    """What a person who must choose may take from it.

    Args:
        rivals: settings of the baseline family that take away the advantage in speed, at most one at each batch size.
    """
    words = {r.batch: r.word for r in ratios}
    for rival in rivals:
        words[rival.speed.batch] = "slower" if rival.speed.word == "faster" else "equal"
    found = set(words.values())
    always, never = found == {"faster"}, found == {"slower"}
    where = ", ".join(str(batch) for batch, word in words.items() if word == "faster")
    beaten = "; ".join(_where(mine, len(mine) == len(words)) for mine in _by_label(rivals))
    if not words:
        fast = "its speed was not measured"
    elif always:
        fast = "it is faster at every batch size measured"
    elif where:
        fast = f"it is faster at batch {where} only" + (f" ({beaten})" if beaten else "")
    elif beaten:
        fast = beaten
    elif never:
        fast = "it is slower at every batch size measured"
    else:
        fast = "it is not measurably faster at any batch size"
    if quality.verdict == "undecided":
        return f"The data can't tell whether {family} is as good as {baseline}; {fast}. More test rows or seeds would."
    if quality.verdict == "worse":
        loss = f"{family} loses {abs(quality.difference):.1f} {quality.metric}"
        return f"{loss}, but {fast}: a trade to weigh." if where else f"Keep {baseline}: {loss}, and {fast}."
    good = f"as good as {baseline}" if quality.verdict == "same" else f"better than {baseline}"
    if always:
        return f"Choose {family}: it is {good} on these data and {fast}."
    if beaten and not where:
        return f"Keep {baseline}: {fast}, though {family} is {good} at its best."
    if never and quality.verdict == "same":
        return f"Keep {baseline}: {family} is {good} on these data, but {fast}."
    return f"{family} is {good} on these data; {fast}."


def _where(rivals: Sequence[Rival], everywhere: bool) -> str:
    """The words on one rival, with the batch sizes unless they hold at all."""
    at = "" if everywhere else f"at batch {', '.join(str(r.speed.batch) for r in rivals)} "
    return at + rival_words(rivals)


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
