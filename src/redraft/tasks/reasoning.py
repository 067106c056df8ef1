"""Reasoning: the target is a chain of thought and, in its last line or after ``####``, the answer."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.metrics.final_answer import FinalAnswer
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Reasoning:
    """Verdicts are about the final answer. Accuracy of the whole text is reported too, which includes the reasoning."""

    summary = "chains of thought: correct final answers, and solutions that are correct throughout"
    margin = 2.0  # per cent of rows

    def metrics(self) -> list[Metric]:
        return [FinalAnswer(), Accuracy()]

    def match(self, data: DataProfile) -> tuple[float, str]:
        if not data.paired or data.concluded < 0.95:
            return 0.0, ""
        return 0.85, f"{data.concluded:.0%} of targets end in a number after a line or more of text"
