"""Matthews correlation of two labels, the metric of CoLA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide
from redraft.metrics.label_f1 import confusion


@dataclass(frozen=True)
class Matthews(Metric):
    """100 (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), and 0 where a factor is 0
    (Matthews 1975, doi:10.1016/0005-2795(75)90109-9).

    Statistics: TP, FP, FN, TN. A text that is no label counts as the wrong one.

    Fields:
        positive: the label that counts as positive.
        labels: both labels.
    """

    positive: str = "1"
    labels: tuple[str, ...] = ("0", "1")

    name = "matthews"
    label = "Matthews correlation x 100"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return confusion(hypotheses, references, self.positive, self.labels)

    def combine(self, total: Array) -> Array:
        tp, fp, fn, tn = np.moveaxis(total, -1, 0)
        return 100.0 * divide(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))

    def row_values(self, stats: Array) -> Array:
        """100 for a right label, 0 for a wrong one."""
        return 100.0 * (stats[:, 0] + stats[:, 3])
