"""Diversity of open-ended text: distinct n-grams, unigram entropy, repetition.

None of these is better when higher or lower: compare them with the same number for human text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError
from redraft.metrics import Array, Metric, divide
from redraft.metrics.shared import scripts

KINDS = ("distinct", "entropy", "repetition")


@dataclass(frozen=True)
class Diversity(Metric):
    """One of three properties, each a mean over texts. Words are separated by white space; in scripts
    without spaces they are characters.

    distinct: number of different n-grams / number of n-grams, in per cent
    (Li et al. 2016, arXiv:1510.03055). repetition: 100 - distinct,
    which at n = 4 is seq-rep-4 (Welleck et al. 2020, arXiv:1908.04319). entropy: of a text's unigrams, in bits; low
    entropy shows text whose perplexity is low only because it is repetitive (Zheng et al. 2024, arXiv:2409.02908).
    References are not used; rows without an n-gram are left out.

    Raises:
        UserError: unknown kind.
    """

    kind: str = "distinct"
    order: int = 2
    better = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"Diversity has no kind '{self.kind}'.", f"Known: {', '.join(KINDS)}.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.kind if self.kind == "entropy" else f"{self.kind}_{self.order}"

    @property
    def label(self) -> str:  # type: ignore[override]
        return "entropy, bits" if self.kind == "entropy" else f"{self.kind}-{self.order} %"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        rows = [self._row(scripts.split(h)) for h in hypotheses]
        return np.array([[0.0, 0.0] if v is None else [v, 1.0] for v in rows])

    def _row(self, words: list[str]) -> float | None:
        if self.kind == "entropy":
            counts = Counter(words).values()
            return -sum(c / len(words) * math.log2(c / len(words)) for c in counts) if words else None
        grams = [tuple(words[i : i + self.order]) for i in range(len(words) - self.order + 1)]
        if not grams:
            return None
        share = 100.0 * len(set(grams)) / len(grams)
        return share if self.kind == "distinct" else 100.0 - share

    def combine(self, total: Array) -> Array:
        return divide(total[..., 0], total[..., 1])
