"""Numeric: the answer is the number of the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redraft.rewards.base import Answer, Reward
from redraft.rewards.shared.answers import final, number


@dataclass(frozen=True)
class Numeric(Reward):
    """1 if the last number of the answer equals that of the reference, else 0, as for GSM8K (arXiv:2110.14168).

    The answer is what ``<answer>`` holds, else what follows the last ``####``, else the last line. Numbers are
    compared exactly, as fractions: ``1,000``, ``$1000`` and ``1000.0`` are equal. The format earns nothing.
    """

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """Its reference must end in a number."""
        return "" if number(final(reference)) is not None else "its reference answer has no number"

    def score(self, answer: Answer) -> float:
        """1 or 0."""
        found = number(final(answer.text))
        return float(found is not None and found == number(final(answer.reference)))
