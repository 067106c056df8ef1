"""Exact: the answer equals the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redraft.metrics import nfc
from redraft.rewards.base import Answer, Reward, needs_reference
from redraft.rewards.shared.answers import answer as answer_of


@dataclass(frozen=True)
class Exact(Reward):
    """1 if the answer equals the reference, else 0: what ``<answer>`` holds, or the whole text without it.

    Spaces at both ends don't count, and Unicode is compared in its composed form.
    """

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs a reference."""
        return needs_reference(reference)

    def score(self, answer: Answer) -> float:
        """1 or 0."""
        return float(nfc(answer_of(answer.text)) == nfc(answer_of(answer.reference)))
