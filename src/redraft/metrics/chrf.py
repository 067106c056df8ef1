"""chrF (Popović 2015, aclanthology W15-3049): character n-gram F-score, order 6, beta 2, as sacrebleu computes it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide


@dataclass(frozen=True)
class Chrf(Metric):
    """F_beta of the mean precision and the mean recall over character n-grams; white space is ignored.

    Statistics of a row: for each order, n-grams of the hypothesis, of the (best) reference, and matches.
    """

    order: int = 6
    beta: float = 2.0

    name = "chrf"
    label = "chrF"

    def details(self) -> list[str]:
        """As in sacrebleu's signature."""
        return ["case:mixed", "eff:yes", f"nc:{self.order}", "nw:0", f"beta:{self.beta:g}", "space:no"]

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return np.stack([self._best(h, r) for h, r in zip(hypotheses, references, strict=True)])

    def _best(self, hypothesis: str, references: Sequence[str]) -> Array:
        """Statistics against the reference that gives the row its highest value."""
        grams = _ngrams(hypothesis, self.order)
        options = np.stack([_matches(grams, _ngrams(r, self.order)) for r in references])
        return options[int(np.argmax(self.combine(options)))]

    def combine(self, total: Array) -> Array:
        ours, theirs, matches = total[..., 0::3], total[..., 1::3], total[..., 2::3]
        counted = ((ours > 0) & (theirs > 0)).astype(np.float64)
        orders = counted.sum(-1)
        precision = divide((divide(matches, ours) * counted).sum(-1), orders)
        recall = divide((divide(matches, theirs) * counted).sum(-1), orders)
        factor = self.beta**2
        return 100.0 * divide((1 + factor) * precision * recall, factor * precision + recall)


def _ngrams(text: str, order: int) -> list[Counter[str]]:
    text = "".join(text.split())
    return [Counter(text[i : i + n] for i in range(len(text) - n + 1)) for n in range(1, order + 1)]


def _matches(ours: list[Counter[str]], theirs: list[Counter[str]]) -> Array:
    stats: list[float] = []
    for a, b in zip(ours, theirs, strict=True):
        # As in sacrebleu: an order for which the reference is too short has no n-grams of the hypothesis either.
        stats += [a.total() if b else 0, b.total(), (a & b).total()]
    return np.array(stats, dtype=np.float64)
