"""Intervals over training seeds, for values that have no rows to resample."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from redraft.evaluation.stats import LEVEL, Interval
from redraft.metrics import need


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean with Student's interval: mean ± t s / sqrt(n). A single value has no interval."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, mean, mean, level)
    quantile = float(need("scipy.stats", "scipy").t.ppf((1 + level) / 2, len(values) - 1))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half, level)


def ratio_of_means(ours: Sequence[float], theirs: Sequence[float], level: float = LEVEL) -> Interval:
    """Our values over theirs, paired by seed: the exponential of the interval of the mean log ratio.

    Raises:
        ValueError: different numbers of values, or one that is not positive.
    """
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    found = t_interval(logs, level)
    return Interval(math.exp(found.value), math.exp(found.low), math.exp(found.high), level)


def paired(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of a - b over seeds, with Student's interval.

    Raises:
        ValueError: different numbers of values.
    """
    return t_interval([x - y for x, y in zip(a, b, strict=True)], level)
