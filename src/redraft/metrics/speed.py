"""Latency and throughput of generation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from redraft.metrics import Array


@dataclass
class Speed:
    """Wall-clock of requests served ``batch`` at a time.

    A request's latency is the time of the batch it was in. Tokens are completion tokens only: prompt tokens are read,
    not written, and never count. Times are medians or percentiles over calls, so that one hiccup of the machine does
    not decide; throughput is the completion tokens of all calls over their whole time.
    """

    batch: int
    seconds: list[float] = field(default_factory=list)  # of each call
    tokens: list[int] = field(default_factory=list)  # completion tokens of each call

    def time(self, call: Callable[[], int], synchronise: Callable[[], None]) -> None:
        """Time one call, which returns how many completion tokens it wrote. ``synchronise`` waits for the device."""
        synchronise()
        begin = time.perf_counter()
        written = call()
        synchronise()
        self.add(time.perf_counter() - begin, written)

    def add(self, seconds: float, tokens: int) -> None:
        self.seconds.append(seconds)
        self.tokens.append(tokens)

    @property
    def tokens_per_second(self) -> float:
        return sum(self.tokens) / sum(self.seconds) if self.seconds else 0.0

    @property
    def requests_per_second(self) -> float:
        return self.batch * len(self.seconds) / sum(self.seconds) if self.seconds else 0.0

    def percentile(self, q: float) -> float:
        """Seconds that ``q`` per cent of requests took at most.

        Raises:
            ValueError: nothing was timed.
        """
        if not self.seconds:
            raise ValueError("no call was timed")
        return float(np.percentile(self.seconds, q))


def ratio_interval(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """How many times faster ``ours`` is than ``theirs``: ratio of median seconds with a bootstrap interval.

    Call i of both was run on the same requests one after the other, so calls are resampled in pairs.

    Returns:
        (theirs / ours, low, high).
    Raises:
        ValueError: the two differ in number, or are empty.
    """
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape or not a.size:
        raise ValueError("both sides need the same number of timed calls, at least one")
    pick = np.random.default_rng(seed).integers(0, a.size, (resamples, a.size))
    draws: Array = np.median(b[pick], axis=1) / np.median(a[pick], axis=1)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return float(np.median(b) / np.median(a)), float(low), float(high)
