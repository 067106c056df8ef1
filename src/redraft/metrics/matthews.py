"""Matthews correlation of two labels, the metric of CoLA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, divide
from redraft.metrics.shared.two_labels import TwoLabels


@dataclass(frozen=True)
class Matthews(TwoLabels):
    """100 (TP TN - FP FN) / sqrt((TP + FP) (TP + FN) (TN + FP) (TN + FN)), and 0 where a factor is 0
    (Matthews 1975, doi:10.1016/0005-2795(75)90109-9).
    """

    name = "matthews"
    label = "Matthews correlation x 100"

    def combine(self, total: Array) -> Array:
        tp, fp, fn, tn = np.moveaxis(total, -1, 0)
        return 100.0 * divide(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
