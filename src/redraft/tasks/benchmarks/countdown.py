"""Countdown: numbers that are combined to a target, scored by computing the steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.rewarded import Rewarded
from redraft.rewards.countdown import Countdown as Reward
from redraft.tasks.benchmarks.base import Benchmark


class Countdown(Benchmark):
    """A text is right if its steps, or its expression, use each number once and end at the target. Examples in the
    prompt are generated (``data.sources.countdown``); test rows are Dream's where the data are there."""

    summary = "numbers combined to a target, 3, 4 and 5 of them: solved problems"
    citation = "Ye et al. 2025, arXiv:2508.15487"
    sources = {count: f"countdown:{count}:100" for count in ("3", "4", "5")}
    template = "Problem: {}\nSteps:"
    shots = 8
    stop = ("\n",)
    max_new_tokens = 96

    def metrics(self, part: str) -> list[Metric]:
        return [Rewarded(Reward(wrong=0.0), "solved", "solved %")]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        steps = "rationale" if "rationale" in values else "answer"  # the columns of Dream's rows and of generated ones
        return Example(text_of(values, "question"), text_of(values, steps), "")
