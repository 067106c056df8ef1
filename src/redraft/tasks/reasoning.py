"""Reasoning: the target is a chain of thought and, in its last line or after ``####``, the answer."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.metrics.answer import Answer
from redraft.tasks import Shape


@dataclass(frozen=True)
class Reasoning:
    """The answer counts. Accuracy of the whole text is told beside it: a right answer from wrong thoughts is luck."""

    summary = "chains of thought: right final answers, and solutions that are right throughout"
    margin = 2.0  # per cent of rows

    def metrics(self) -> list[Metric]:
        return [Answer(), Accuracy()]

    def claim(self, shape: Shape) -> tuple[float, str]:
        if not shape.paired or shape.concluded < 0.95:
            return 0.0, ""
        return 0.85, f"{shape.concluded:.0%} of targets end in a number after a line or more of text"
