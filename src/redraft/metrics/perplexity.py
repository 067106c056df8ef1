"""Perplexity of generated texts under an independent model, the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, divide
from redraft.metrics.shared.judge import Judged


@dataclass(frozen=True)
class Perplexity(Judged):
    """exp(sum(-log p(text)) / sum(tokens)), with the probabilities and tokens of the judge.

    A text is scored alone, without its prompt. For a generator q and a judge p, the logarithm is H(q) + KL(q | p):
    repetitive text has a low value. It is therefore neither better nor worse: compare it with the value of human text,
    at equal entropy (``diversity``). Values of two judges can't be compared. Empty texts are left out. Statistics:
    (nats, tokens).
    """

    better = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        return "judged_perplexity"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"perplexity under {self.judge}"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return np.array([self._row(text) for text in hypotheses])

    def _row(self, text: str) -> tuple[float, float]:
        if not self.model.tokenizer.encode(text):
            return 0.0, 0.0
        found = self.model.rolling(text)
        return found.nats, float(found.tokens)

    def combine(self, total: Array) -> Array:
        return np.where(total[..., 1] > 0, np.exp(divide(total[..., 0], total[..., 1])), 0.0)
