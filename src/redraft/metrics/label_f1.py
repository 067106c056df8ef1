"""F1 of one of two labels, as GLUE reports it for pairs of questions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, divide
from redraft.metrics.shared.two_labels import TwoLabels


@dataclass(frozen=True)
class LabelF1(TwoLabels):
    """100 * 2 TP / (2 TP + FP + FN) of the positive label, over the whole corpus."""

    name = "label_f1"
    label = "F1 of the positive label"

    def combine(self, total: Array) -> Array:
        tp, fp, fn, _ = np.moveaxis(total, -1, 0)
        return 100.0 * divide(2 * tp, 2 * tp + fp + fn)
