"""One file = one benchmark: rivals and ours side by side in one run, speeds as ratios of paired rounds."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

Tell = Callable[[str], None]


class Benchmark(Protocol):
    """A dataclass whose fields are its options."""

    def run(self, tell: Tell) -> dict[str, Any]: ...


def rounds(contenders: Mapping[str, Callable[[], object]], count: int, tell: Tell) -> dict[str, list[float]]:
    """Seconds of every contender in every round; one round of warming up before. They take turns, so that a busy
    minute of the machine meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(count + 1):
        for name, run in contenders.items():
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
        tell(f"round {number} of {count}" if number else "warmed up")
    return seconds


def against(seconds: Mapping[str, list[float]], name: str, yardstick: str) -> dict[str, float]:
    """How many times as fast as the yardstick: median, least and most of the paired rounds."""
    ratios = [theirs / mine for theirs, mine in zip(seconds[yardstick], seconds[name], strict=True)]
    return {"ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def machine(count: int) -> str:
    return f"{platform.machine()}, {count} threads, torch {torch.__version__}"
