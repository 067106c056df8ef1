"""Registry of benchmarks: one file is one benchmark. Candidates take turns in one process; speeds are paired ratios."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

Log = Callable[[str], None]


class Benchmark(Protocol):
    """A benchmark: a dataclass whose fields are its options."""

    def run(self, log: Log) -> dict[str, Any]:
        """Measure and return plain values; ``log`` receives lines of progress."""
        ...


def rounds(candidates: Mapping[str, Callable[[], object]], count: int, log: Log) -> dict[str, list[float]]:
    """Seconds of every candidate in every round, after one round of warm-up.

    Candidates take turns, so that other load on the machine affects all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(count + 1):
        for name, run in candidates.items():
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
        log(f"round {number} of {count}" if number else "warm-up finished")
    return seconds


def speedup(seconds: Mapping[str, list[float]], name: str, baseline: str) -> dict[str, float]:
    """Speed relative to the baseline: median, minimum and maximum of the ratios of paired rounds."""
    ratios = [theirs / mine for theirs, mine in zip(seconds[baseline], seconds[name], strict=True)]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Set torch's number of threads within a ``with`` block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(count: int) -> str:
    """A short description of the machine."""
    return f"{platform.machine()}, {count} threads, torch {torch.__version__}"
