"""Intervals, paired tests and equivalence tests for corpus metrics, from sufficient statistics.

The statistics of a system are an array [seeds, rows, k]: for each training seed and test row, k numbers that add up
over rows. ``combine`` turns sums [..., k] into values [...]. The value of a system is the mean over seeds of the corpus
value. Rows are the same for all systems and seeds (crossed); seeds belong to one system (nested).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Combine = Callable[[Array], Array]

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value with a bootstrap interval."""

    value: float
    low: float
    high: float
    level: float = LEVEL

    def contains(self, value: float) -> bool:
        """Is a value inside?"""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Comparison:
    """System a against system b. A positive ``difference`` means that a is better, whatever the metric's direction."""

    difference: Interval  # at LEVEL
    narrow: Interval  # at 1 - 2 (1 - LEVEL): the interval of the two one-sided tests
    margin: float
    p_difference: float  # paired approximate randomisation over rows; the trained models are fixed
    p_equivalence: float  # larger of the two one-sided bootstrap tests at the margin
    verdict: str  # same | better | worse | undecided
    seeds: int  # the smaller number of seeds of the two

    @property
    def preliminary(self) -> bool:
        """There is only one seed, so the variance between training runs is unknown."""
        return self.seeds < 2


def point(stats: Array, combine: Combine) -> float:
    """Mean over seeds of the corpus value; ``stats`` is [seeds, rows, k]."""
    return float(np.mean(combine(_three(stats).sum(1))))


def interval(
    stats: Array, combine: Combine, seed: int = 0, level: float = LEVEL, resamples: int = RESAMPLES
) -> Interval:
    """Percentile bootstrap interval (Efron & Tibshirani 1993) of a system's value over rows and seeds.

    Resamples are shifted so that their mean is the value. A metric of the similarity of two corpora falls when rows are
    repeated, so that its plain percentiles would not contain its value. For means and BLEU the shift is negligible.

    Args:
        stats: [seeds, rows, k], or [rows, k] for one seed.
    """
    stats = _three(stats)
    rng = np.random.default_rng(seed)
    draws = _draw(stats, combine, _row_counts(rng, stats.shape[1], resamples), rng)
    value = point(stats, combine)
    least = 0.0 if float(draws.min()) >= 0 else -math.inf  # the shift must not lead below what a metric can be
    draws = value + (draws - draws.mean()) * _widening([stats], combine, draws, level)
    low, high = _percentiles(draws, level)
    return Interval(value, max(low, min(least, value)), high, level)


def resampled(stats: Array, combine: Combine, seed: int = 0, resamples: int = RESAMPLES) -> Array:
    """Values of a system in bootstrap resamples [resamples]. Systems on the same rows with the same seed are resampled
    alike, so that values of one column can be compared.

    Args:
        stats: [seeds, rows, k], or [rows, k] for one seed.
    """
    stats = _three(stats)
    rng = np.random.default_rng(seed)
    return _draw(stats, combine, _row_counts(rng, stats.shape[1], resamples), rng)


def compare(
    a: Array,
    b: Array,
    combine: Combine,
    margin: float,
    better: int = 1,
    seed: int = 0,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Compare two systems on the same rows.

    The difference is bootstrapped over rows (drawn once for both systems: paired) and over the seeds of each. The two
    systems are equivalent if both one-sided tests at ``1 - level`` reject a difference as large as the margin (TOST,
    Schuirmann 1987). This is the case if the ``1 - 2 (1 - level)`` interval is inside (-margin, margin).

    Verdict, in this order: *same*, the systems are equivalent; *better* or *worse*, the interval at ``level`` excludes
    zero; *undecided*, anything else. A small real difference inside the margin is *same* by definition.

    Args:
        a, b: statistics [seeds, rows, k] (or [rows, k]) on the same rows in the same order.
        margin: the largest difference that counts as equal, in units of the metric; chosen before looking at results.
        better: +1 if higher values are better, -1 if lower ones are.
    Raises:
        ValueError: the rows differ, or the margin is not positive.
    """
    a, b = _three(a), _three(b)
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"the systems were scored on different rows: {a.shape[1:]} and {b.shape[1:]}")
    if not margin > 0:
        raise ValueError("the margin of an equivalence test must be positive")
    rng = np.random.default_rng(seed)
    counts = _row_counts(rng, a.shape[1], resamples)
    draws = better * (_draw(a, combine, counts, rng) - _draw(b, combine, counts, rng))
    value = better * (point(a, combine) - point(b, combine))
    draws -= draws.mean()
    wide = value + draws * _widening([a, b], combine, draws, level)
    inner = 1 - 2 * (1 - level)
    slim = value + draws * _widening([a, b], combine, draws, inner)
    difference = Interval(value, *_percentiles(wide, level), level)
    narrow = Interval(value, *_percentiles(slim, inner), inner)
    return Comparison(
        difference=difference,
        narrow=narrow,
        margin=margin,
        p_difference=randomisation(a, b, combine, seed, resamples),
        p_equivalence=float(max(_share(slim >= margin), _share(slim <= -margin))),
        verdict=decide(difference, narrow, margin),
        seeds=min(len(a), len(b)),
    )


def decide(difference: Interval, narrow: Interval, margin: float) -> str:
    """The verdict of a comparison; see ``compare``."""
    if -margin < narrow.low and narrow.high < margin:
        return "same"
    if difference.low > 0:
        return "better"
    if difference.high < 0:
        return "worse"
    return "undecided"


def randomisation(a: Array, b: Array, combine: Combine, seed: int = 0, resamples: int = RESAMPLES) -> float:
    """Two-sided p-value of the paired approximate randomisation test (Noreen 1989; Riezler & Maxwell 2005).

    Under the null hypothesis either system could have produced the outputs of a row: they are exchanged with
    probability 1/2, all seeds of a row together. p = (1 + #{|d*| >= |d|}) / (1 + resamples) is conservative and never
    zero. Seeds are averaged, so the systems may have different numbers of seeds.

    Args:
        a, b: statistics [seeds, rows, k] (or [rows, k]) on the same rows in the same order.
    """
    a, b = _three(a).mean(0), _three(b).mean(0)
    rng = np.random.default_rng(seed + 1)
    swap = rng.integers(0, 2, (resamples, len(a))).astype(np.float64)
    total_a, total_b = a.sum(0), b.sum(0)
    observed = abs(float(combine(total_a) - combine(total_b)))
    ours = _in_parts(lambda move: combine(total_a + move), swap, b - a)
    theirs = _in_parts(lambda move: combine(total_b - move), swap, b - a)
    return _share(np.abs(ours - theirs) >= observed - 1e-12)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down adjustment of several p-values, returned in their order."""
    order = np.argsort(p_values)
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def _three(stats: Array) -> Array:
    stats = np.asarray(stats, dtype=np.float64)
    return stats[None] if stats.ndim == 2 else stats


def _in_parts(combine: Combine, weights: Array, stats: Array) -> Array:
    """combine(weights @ stats), [resamples], a few resamples at a time: k may be in the thousands."""
    return np.concatenate([combine(part @ stats) for part in np.array_split(weights, -(-len(weights) // 250))])


def _row_counts(rng: np.random.Generator, rows: int, resamples: int) -> Array:
    """How often each resample draws each row, [resamples, rows]."""
    return rng.multinomial(rows, np.full(rows, 1.0 / rows), size=resamples).astype(np.float64)


def _draw(stats: Array, combine: Combine, counts: Array, rng: np.random.Generator) -> Array:
    """Bootstrap values of one system, [resamples].

    Rows are drawn for all seeds together. Deviations of the seeds from their mean are added, n - 1 of n drawn with
    replacement: drawing all n would understate their variance by a factor of (n - 1) / n, two thirds at three seeds
    (Rao & Wu 1988, doi:10.1080/01621459.1988.10478591). Deviations are shrunk to the share that is due to seeds
    (``_seed_share``).
    """
    values = np.stack([_in_parts(combine, counts, one) for one in stats])  # [seeds, resamples]
    seeds, resamples = values.shape
    if seeds == 1:
        return values[0]
    plain = combine(stats.sum(1))
    deviation = (plain - plain.mean()) * np.sqrt(_seed_share(plain, values))
    pick = rng.integers(0, seeds, (resamples, seeds - 1))
    return values.mean(0) + deviation[pick].mean(1)


def _seed_share(plain: Array, values: Array) -> float:
    """Share of the variance between seeds that is not due to the sample of rows.

    On a finite set of rows, seeds differ even if all training runs are equally good. The bootstrap over rows already
    includes this part: it is the variance of a seed's value about the mean of all seeds, over resampled rows.

    Args:
        plain: [seeds] values on the rows as they are. values: [seeds, resamples] on resampled rows.
    """
    seeds = len(plain)
    between = float(np.var(plain, ddof=1))
    noise = float(np.var(values - values.mean(0), axis=1).mean()) * seeds / (seeds - 1)
    return max(0.0, 1.0 - noise / between) if between > 0 else 0.0


def _widening(systems: Sequence[Array], combine: Combine, draws: Array, level: float) -> float:
    """Factor by which an interval is widened because the variance between seeds is estimated from few seeds.

    It is the ratio of Student's quantile to the normal quantile at the Welch-Satterthwaite degrees of freedom, with
    infinite degrees of freedom for the rows. With one seed there is no estimate: the factor is 1, and the result is
    called preliminary.
    """
    parts = [(float(np.var(combine(s.sum(1)), ddof=1)) / len(s), len(s) - 1) for s in systems if len(s) > 1]
    total = float(np.var(draws))
    spread = sum(variance**2 / degrees for variance, degrees in parts)
    if total <= 0 or spread <= 0:
        return 1.0
    from scipy import stats as scipy_stats

    tail = (1 + level) / 2
    degrees = max(1.0, max(total, sum(v for v, _ in parts)) ** 2 / spread)
    return float(scipy_stats.t.ppf(tail, degrees) / scipy_stats.norm.ppf(tail))


def _percentiles(draws: Array, level: float) -> tuple[float, float]:
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def _share(hits: Array) -> float:
    return float((1 + hits.sum()) / (1 + hits.size))
