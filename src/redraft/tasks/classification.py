"""Classification: the target is one of a few labels."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Classification:
    """Labels, scored by accuracy."""

    summary = "labels: accuracy"
    margin = 2.0  # per cent of rows

    def metrics(self) -> list[Metric]:
        return [Accuracy()]

    def match(self, data: DataProfile) -> tuple[float, str]:
        few = data.distinct_targets <= min(50, max(2, data.rows // 10))
        if not data.paired or not few or data.most_target_words > 5:
            return 0.0, ""
        return 0.9, f"only {data.distinct_targets} different targets in {data.rows} rows"
