"""Classification: the target is one of a few labels."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.tasks import Shape


@dataclass(frozen=True)
class Classification:
    summary = "labels: accuracy"
    margin = 2.0  # per cent of rows

    def metrics(self) -> list[Metric]:
        return [Accuracy()]

    def claim(self, shape: Shape) -> tuple[float, str]:
        few = shape.distinct_targets <= min(50, max(2, shape.rows // 10))
        if not shape.paired or not few or shape.most_target_words > 5:
            return 0.0, ""
        return 0.9, f"only {shape.distinct_targets} different targets in {shape.rows} rows"
