"""Correlation of numbers that are written as text, the metric of STS-B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError
from redraft.metrics import Array, Metric, divide
from redraft.rewards.shared.answers import number

KINDS = ("pearson", "spearman")
_ROUNDING = 1e-12  # relative error of the difference of two sums


@dataclass(frozen=True)
class Correlation(Metric):
    """100 times the correlation of the numbers in texts and references.

    pearson: cov(x, y) / (s_x s_y), from the sums (n, x, y, xx, yy, xy) that are the statistics. spearman: the same of
    ranks, with the mean rank for ties. The ranks are those among all rows, also in a bootstrap resample. A text without
    a number counts as ``missing``.

    Raises:
        UserError: unknown kind.
    """

    kind: str = "pearson"
    missing: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"Correlation has no kind '{self.kind}'.", f"Known: {', '.join(KINDS)}.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.kind

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"{self.kind.capitalize()} correlation x 100"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        x = np.array([self._number(text) for text in hypotheses])
        y = np.array([self._number(known[0]) for known in references])
        if self.kind == "spearman":
            x, y = ranks(x), ranks(y)
        return np.stack([np.ones(len(x)), x, y, x * x, y * y, x * y], axis=1)

    def _number(self, text: str) -> float:
        found = number(text)
        return self.missing if found is None else float(found)

    def combine(self, total: Array) -> Array:
        n, x, y, xx, yy, xy = np.moveaxis(total, -1, 0)
        across, down = (np.clip(n * square - one * one, 0, None) for square, one in ((xx, x), (yy, y)))
        varies = (across > _ROUNDING * n * xx) & (down > _ROUNDING * n * yy)  # else all numbers are equal
        return 100.0 * np.where(varies, divide(n * xy - x * y, np.sqrt(across * down)), 0.0)

    def row_values(self, stats: Array) -> Array:
        """A row alone has no correlation: minus its squared distance from the reference."""
        found: Array = -np.square(stats[:, 1] - stats[:, 2])
        return found


def ranks(values: Array) -> Array:
    """The rank of each value from 1 [n]; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    found: Array = (ends - (counts - 1) / 2)[inverse]
    return found
