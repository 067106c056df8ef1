"""Accuracy: the generated text equals the label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean


@dataclass(frozen=True)
class Accuracy(Mean):
    """Per cent of rows whose text equals a reference. Case and white space are ignored."""

    name = "accuracy"
    label = "accuracy %"
    decides = True

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        ours = " ".join(hypothesis.casefold().split())
        return float(any(ours == " ".join(r.casefold().split()) for r in references))
