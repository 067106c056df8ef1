"""Latency and throughput of generation. Configurations are timed in turns, so that a busy moment affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redraft import runtime
from redraft.evaluation.decoding import DecodingConfig
from redraft.generation.prompts import Prompt
from redraft.metrics import Array
from redraft.model import Model

FEWEST_CALLS = 3  # timed calls of each configuration, also when no time is left


@dataclass
class Speed:
    """Wall-clock time of requests in batches of ``batch``.

    The latency of a request is the time of its batch. Tokens are completion tokens only; prompt tokens don't count.
    Times are medians or percentiles over calls, so that a single slow call has little influence. Throughput is the
    number of completion tokens of all calls divided by their total time.
    """

    batch: int
    seconds: list[float] = field(default_factory=list)  # of each call
    tokens: list[int] = field(default_factory=list)  # completion tokens of each call

    def time(self, call: Callable[[], int], synchronise: Callable[[], None]) -> None:
        """Time one call, which returns its number of completion tokens. ``synchronise`` waits for the device."""
        synchronise()
        begin = time.perf_counter()
        tokens = call()
        synchronise()
        self.add(time.perf_counter() - begin, tokens)

    def add(self, seconds: float, tokens: int) -> None:
        """Add one call."""
        self.seconds.append(seconds)
        self.tokens.append(tokens)

    @property
    def tokens_per_second(self) -> float:
        """Completion tokens per second."""
        return sum(self.tokens) / sum(self.seconds) if self.seconds else 0.0

    @property
    def requests_per_second(self) -> float:
        """Requests per second."""
        return self.batch * len(self.seconds) / sum(self.seconds) if self.seconds else 0.0

    def percentile(self, q: float) -> float:
        """Seconds in which ``q`` per cent of requests were done.

        Raises:
            ValueError: no call was timed.
        """
        if not self.seconds:
            raise ValueError("no call was timed")
        return float(np.percentile(self.seconds, q))


@dataclass(frozen=True)
class TimedCalls:
    """The timed calls of one configuration."""

    id: str
    seconds: tuple[float, ...]
    tokens: tuple[int, ...]  # completion tokens


def time_in_turns(
    runners: Sequence[tuple[Model, DecodingConfig]],
    prompts: Sequence[Prompt],
    batch: int,
    calls: int,
    new_tokens: int | Sequence[int],
    until: float = float("inf"),
) -> list[TimedCalls]:
    """Seconds and completion tokens of every call of every configuration. Call i has the same prompts for all.

    Args:
        runners: models with their configurations.
        new_tokens: the limit of an output, for all of them or one for each.
        until: time.monotonic() after which no further turn begins, once there have been ``FEWEST_CALLS``.
    """
    speeds = [Speed(batch) for _ in runners]
    limits = [new_tokens] * len(runners) if isinstance(new_tokens, int) else new_tokens
    for turn in range(-1, calls):  # the first turn is a warm-up and is not counted
        if turn >= FEWEST_CALLS and time.monotonic() > until:
            break
        asked = [prompts[(max(turn, 0) * batch + i) % len(prompts)] for i in range(batch)]
        for (model, config), limit, speed in zip(runners, limits, speeds, strict=True):
            settings = model.settings(max_new_tokens=limit, **config.generation())

            def call(model: Model = model, settings: Any = settings, asked: Sequence[Prompt] = asked) -> int:
                drafting = model.start(asked, settings)
                for _ in drafting:
                    pass
                return sum(len(generation.ids) for generation in drafting.results())

            target = Speed(batch) if turn < 0 else speed
            target.time(call, lambda model=model: runtime.synchronise(model.network.device))  # type: ignore[misc]
    return [
        TimedCalls(config.id, tuple(speed.seconds), tuple(speed.tokens))
        for (_, config), speed in zip(runners, speeds, strict=True)
    ]


def ratio_interval(
    ours: Sequence[float], theirs: Sequence[float], seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float, float]:
    """How many times as fast as ``theirs`` ``ours`` is: the ratio of median seconds with a bootstrap interval.

    Call i of both ran on the same requests, one after the other, so calls are resampled in pairs.

    Returns:
        (theirs / ours, low, high).
    Raises:
        ValueError: different numbers of calls, or none.
    """
    a, b = np.asarray(ours), np.asarray(theirs)
    if a.shape != b.shape or not a.size:
        raise ValueError("both sides need the same number of timed calls, and at least one")
    pick = np.random.default_rng(seed).integers(0, a.size, (resamples, a.size))
    draws: Array = np.median(b[pick], axis=1) / np.median(a[pick], axis=1)
    low, high = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)])
    return float(np.median(b) / np.median(a)), float(low), float(high)
