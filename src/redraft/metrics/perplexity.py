"""Perplexity of generated texts under an independent model, the judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from redraft.errors import UserError
from redraft.metrics import Array, Metric, divide

if TYPE_CHECKING:
    from redraft.model import Model


@dataclass(frozen=True)
class Perplexity(Metric):
    """exp(sum(-log p(text)) / sum(tokens)), with the probabilities and tokens of the judge.

    A text is scored alone, without its prompt. For a generator q and a judge p, the logarithm is H(q) + KL(q | p):
    repetitive text has a low value. It is therefore neither better nor worse: compare it with the value of human text,
    at equal entropy (``diversity``). Values of two judges can't be compared. Empty texts are left out. Statistics:
    (nats, tokens).

    Fields:
        judge: name or folder of an autoregressive model of plain text, such as ``smollm2-135m``.
    """

    judge: str
    device: str = "auto"

    better = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        return "judged_perplexity"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"perplexity under {self.judge}"

    @cached_property
    def model(self) -> Model:
        """The judge, loaded at the first use.

        Raises:
            UserError: there is no such model, or its likelihood is not exact or not of plain text.
        """
        from redraft.loading import load

        found = load(self.judge, self.device)
        if found.paired or found.spec.family.schedule is not None:
            kind = "pairs" if found.paired else f"family {found.family_name}"
            what = f"'{self.judge}', a model of {kind}, can't judge texts: it has no exact likelihood of plain text."
            raise UserError(what, "Use an autoregressive model of plain text, for example smollm2-135m.")
        return found

    def check(self) -> None:
        """Load the judge before texts are generated.

        Raises:
            UserError: as for ``model``.
        """
        _ = self.model

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return np.array([self._row(text) for text in hypotheses])

    def _row(self, text: str) -> tuple[float, float]:
        if not self.model.tokenizer.encode(text):
            return 0.0, 0.0
        found = self.model.rolling(text)
        return found.nats, float(found.tokens)

    def combine(self, total: Array) -> Array:
        return np.where(total[..., 1] > 0, np.exp(divide(total[..., 0], total[..., 1])), 0.0)
