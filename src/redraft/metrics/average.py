"""Average: the mean of several metrics of the same rows, where a benchmark counts them as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from redraft.metrics import Array, Metric


@dataclass(frozen=True)
class Average(Metric):
    """The mean of two or more metrics, such as accuracy and F1 of QQP in GLUE (Wang et al. 2019, arXiv:1804.07461).

    Statistics: those of its parts, one after the other.
    """

    parts: tuple[Metric, ...]

    name = "average"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"mean of {' and '.join(part.label for part in self.parts)}"

    def details(self) -> list[str]:
        """The signatures of the parts."""
        return [part.signature for part in self.parts]

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return np.concatenate([part.statistics(hypotheses, references) for part in self.parts], axis=1)

    def combine(self, total: Array) -> Array:
        widths = [part.statistics(["0"], [["0"]]).shape[1] for part in self.parts]
        split = np.split(total, list(accumulate(widths))[:-1], axis=-1)
        return np.asarray(np.mean([part.combine(own) for part, own in zip(self.parts, split, strict=True)], axis=0))
