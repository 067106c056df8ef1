"""Fair comparisons of methods that have several settings: cost at equal quality, and quality at equal cost.

Every method is swept over its settings, and the upper envelopes are compared, not single points: neither a method at
its fastest with another at its best, nor the reverse. Which setting is the right one is chosen anew in every bootstrap
resample, so that the intervals include the choice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.evaluation.stats import LEVEL, Interval
from redraft.metrics import Array


@dataclass(frozen=True)
class Matched:
    """The least cost at which a method reaches a quality."""

    cost: float
    low: float
    high: float  # infinite if too many resamples don't reach it
    reached: float  # share of resamples in which some setting reaches it
    setting: int  # index of the cheapest setting that does


def least_cost(
    costs: Array, values: Array, draws: Array, target: float, target_draws: Array, margin: float
) -> Matched | None:
    """The least cost with quality >= target - margin; None: not reached.

    Args:
        costs, values: [S] cost and quality of each setting; quality is better if higher.
        draws: [S, R] qualities in bootstrap resamples.
        target, target_draws: what is to be reached, such as the rival's best quality, and [R] in the same resamples.
        margin: how much less is enough.
    """
    reaching = np.flatnonzero(values >= target - margin)
    if not len(reaching):
        return None
    cheapest = int(reaching[np.argmin(costs[reaching])])
    each = np.where(draws >= target_draws - margin, costs[:, None], np.inf).min(0)
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(each, [tail, 100 - tail], method="nearest")
    return Matched(float(costs[cheapest]), float(low), float(high), float(np.isfinite(each).mean()), cheapest)


def best_within(costs: Array, values: Array, draws: Array, budget: float) -> Interval | None:
    """The best quality of the settings that cost no more than a budget; None: all cost more. Arguments as above."""
    cheap = np.flatnonzero(costs <= budget * (1 + 1e-9))
    if not len(cheap):
        return None
    chosen = draws[cheap].max(0)
    value = float(values[cheap].max())
    low, high = np.percentile(chosen, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(value, min(float(low), value), max(float(high), value))
