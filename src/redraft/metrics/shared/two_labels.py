"""Metrics of the confusion between two labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric


@dataclass(frozen=True)
class TwoLabels(Metric):
    """Statistics: TP, FP, FN, TN. A text that is no label counts as the wrong one.

    Fields:
        positive: the label that counts as positive.
        labels: both labels.
    """

    positive: str = "1"
    labels: tuple[str, ...] = ("0", "1")

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return confusion(hypotheses, references, self.positive, self.labels)

    def row_values(self, stats: Array) -> Array:
        """100 for a right label, 0 for a wrong one."""
        return 100.0 * (stats[:, 0] + stats[:, 3])


def confusion(texts: Sequence[str], references: Sequence[Sequence[str]], positive: str, labels: Sequence[str]) -> Array:
    """TP, FP, FN and TN of each row, [rows, 4], one of them 1. A text that is none of ``labels`` is a wrong one."""
    found = np.zeros((len(texts), 4))
    known = {folded(label) for label in labels}
    for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
        is_positive, ours = folded(reference[0]) == folded(positive), folded(text)
        says = ours == folded(positive) if ours in known else not is_positive
        found[row, (0 if is_positive else 1) if says else (2 if is_positive else 3)] = 1
    return found


def folded(label: str) -> str:
    """A label without case and surplus spaces."""
    return " ".join(label.casefold().split())
