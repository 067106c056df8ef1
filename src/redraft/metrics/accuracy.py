"""Accuracy: the text is the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean


@dataclass(frozen=True)
class Accuracy(Mean):
    """Per cent of rows whose text equals a reference, apart from case and surrounding white space."""

    name = "accuracy"
    label = "accuracy %"

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        ours = " ".join(hypothesis.casefold().split())
        return float(any(ours == " ".join(r.casefold().split()) for r in references))
