"""Question answering and other short free answers."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.exact_match import ExactMatch
from redraft.metrics.f1 import F1
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Qa:
    """Short answers, scored by token F1 and exact match."""

    summary = "short answers: token F1 and exact match"
    margin = 2.0  # F1 points

    def metrics(self) -> list[Metric]:
        return [F1(), ExactMatch()]

    def match(self, data: DataProfile) -> tuple[float, str]:
        if not data.paired or data.target_words >= 6 or data.prompt_words < 2 * data.target_words:
            return 0.0, ""
        return 0.75, f"targets are short ({data.target_words:.1f} words) and mostly different from each other"
