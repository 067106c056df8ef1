"""Bleu: sentence BLEU against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redraft.metrics.bleu import Bleu as Metric
from redraft.options import setting
from redraft.rewards.base import Answer, Reward, needs_reference


@dataclass(frozen=True)
class Bleu(Reward):
    """Sentence BLEU with smoothing (``metrics.bleu``), from 0 to 1."""

    tokenize: str = setting("13a", "Tokenizer of sacreBLEU.")

    def ready(self) -> None:
        """Check that the tokenizer is installed."""
        Metric(self.tokenize).ready()

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs a reference."""
        return needs_reference(reference)

    def score(self, answer: Answer) -> float:
        """Between 0 and 1."""
        return self.scores([answer])[0]

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """Between 0 and 1 each."""
        found = Metric(self.tokenize).score([one.text for one in answers], [one.reference for one in answers])
        return [float(value) / 100 for value in found.rows]
