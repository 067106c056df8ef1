"""Last number: the number that an answer ends with is right, whatever stands around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean
from redraft.rewards.shared.answers import number


@dataclass(frozen=True)
class LastNumber(Mean):
    """Per cent of rows whose last number equals the last number of a reference.

    It is the flexible extraction of the lm-evaluation-harness: no format is asked for, so that models that were never
    told to write ``####`` can be compared. ``1,000``, ``$1000`` and ``1000.0`` are equal.
    """

    name = "last_number"
    label = "last number correct %"
    decides = True

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        ours = number(hypothesis)
        return float(ours is not None and any(ours == number(reference) for reference in references))
