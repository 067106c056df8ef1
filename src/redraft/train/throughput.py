"""Speed of training."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from redraft import runtime


class Meter:
    """Tokens and FLOPs per second of training between two calls: queued device work is included, pauses are not."""

    def __init__(self, device: torch.device, tokens: int, flops: int) -> None:
        self._device, self._first, self._paused, self._pace = device, tokens, 0.0, 0.0
        self._last = (time.perf_counter(), tokens, flops)

    def lap(self, tokens: int, flops: int) -> tuple[float, float]:
        """(tokens per second, FLOP/s) since the last lap, given the counts so far."""
        runtime.synchronise(self._device)
        before, self._last = self._last, (time.perf_counter(), tokens, flops)
        seconds = max(self._last[0] - before[0], 1e-9)
        self._pace = seconds / max(tokens - before[1], 1)
        return (tokens - before[1]) / seconds, (flops - before[2]) / seconds

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time spent inside, such as a validation, as training."""
        runtime.synchronise(self._device)
        begun = time.perf_counter()
        yield
        runtime.synchronise(self._device)
        gone = time.perf_counter() - begun
        self._paused += gone
        self._last = (self._last[0] + gone, *self._last[1:])

    def ahead(self, tokens: float) -> float:
        """Seconds that ``tokens`` more take at the speed of the last lap, with as much pause per token as so far."""
        return tokens * (self._pace + self._paused / max(self._last[1] - self._first, 1))


class Peak:
    """The greatest measured speed of a large matrix product, in FLOP/s: what a share of peak refers to.

    A measurement is too low while other processes use the machine. So it is repeated beside the work, and the greatest
    value counts.
    """

    def __init__(self, where: torch.device, dtype: torch.dtype, seconds: float = 0.4) -> None:
        self._where, self._dtype = where, dtype
        self.flops = runtime.peak_matmul(where, dtype, seconds=seconds)
        self._measured = time.monotonic()

    def measure(self, seconds: float = 0.05) -> None:
        """Measure again. The random numbers of the process do not change."""
        with torch.random.fork_rng(devices=[self._where] if self._where.type == "cuda" else []):
            self.flops = max(self.flops, runtime.peak_matmul(self._where, self._dtype, seconds=seconds))
        self._measured = time.monotonic()

    def is_due(self, rate: float) -> bool:
        """Is it time to measure again? Sooner if ``rate`` FLOP/s exceed it."""
        return time.monotonic() - self._measured > (_PEAK_SECONDS if rate <= self.flops else _PEAK_SECONDS / 10)

    def share(self, rate: float) -> float | None:
        """``rate`` FLOP/s as a share of the peak; None where it exceeds the peak, which was then measured too low."""
        return rate / self.flops if rate <= self.flops else None


_PEAK_SECONDS = 30.0  # between two measurements of the peak
