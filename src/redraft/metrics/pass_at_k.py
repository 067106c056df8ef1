"""pass@k: the probability that at least one of k attempts at a problem is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide


def pass_at_k(attempts: int, right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for n attempts of which c are right: unbiased, unlike 1 - (1 - c / n)^k (Chen et al.
    2021, arXiv:2107.03374).

    Raises:
        ValueError: not 0 <= c <= n, or not 1 <= k <= n.
    """
    if not 0 <= right <= attempts or not 1 <= k <= attempts:
        raise ValueError(f"pass@{k} of {attempts} attempts, {right} of them right")
    wrong = attempts - right
    if wrong < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(wrong + 1, attempts + 1)))


@dataclass(frozen=True)
class PassAtK(Metric):
    """Mean of ``pass_at_k`` over problems, in per cent. Statistics: (value, 1) of each problem, from ``of``.

    It is a function of another metric's rights and wrongs, so ``statistics`` raises an error.
    """

    k: int = 1

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"pass_at_{self.k}"

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"pass@{self.k} %"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        """Not available.

        Raises:
            TypeError: always; use ``of``.
        """
        raise TypeError("pass@k needs the attempts that are right, not texts")

    def of(self, right: Array) -> Array:
        """Statistics [problems, 2] from the attempts that are right, [problems, attempts] of booleans."""
        values = [pass_at_k(right.shape[1], int(row.sum()), self.k) for row in right]
        return np.stack([np.asarray(values), np.ones(len(values))], axis=1)

    def combine(self, total: Array) -> Array:
        return 100.0 * divide(total[..., 0], total[..., 1])
