"""Chrf: character n-gram F-score against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.metrics.chrf import Chrf as Metric
from redraft.rewards.base import Answer, Reward, needs_reference


@dataclass(frozen=True)
class Chrf(Reward):
    """chrF (``metrics.chrf``), from 0 to 1. It varies more finely than BLEU on short texts."""

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs a reference."""
        return needs_reference(reference)

    def score(self, answer: Answer) -> float:
        """Between 0 and 1."""
        return self.scores([answer])[0]

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """Between 0 and 1 each."""
        found = Metric().score([one.text for one in answers], [one.reference for one in answers])
        return [float(value) / 100 for value in found.rows]
