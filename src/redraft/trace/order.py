"""The order in which the positions of a text were written.

``steps`` [n] is, for every generated position from left to right, the step in which it got its final token. Ties are
positions written in parallel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class WritingOrder:
    """Measures of one text. Left to right, one token a step: parallelism 1, all others 1."""

    parallelism: float  # tokens per step that finished at least one
    tau: float  # Kendall's tau of position and step: 1 left to right, -1 right to left; ties count as 0
    tau_b: float  # the same over the pairs that are not ties; nan without such pairs
    local: float  # share of writes at the position after the previous write
    leftmost: float  # share of writes at the leftmost open position

    @classmethod
    def of(cls, steps: Sequence[int]) -> WritingOrder:
        """Raises:
        ValueError: no position.
        """
        tau, tau_b = kendall(steps)
        return cls(parallelism(steps), tau, tau_b, local_order(steps), leftmost_order(steps))


def parallelism(steps: Sequence[int]) -> float:
    """Tokens per step that finished at least one (average finalisation parallelism, arXiv:2601.15593).

    Raises:
        ValueError: no position.
    """
    if not len(steps):
        raise ValueError("no position")
    return len(steps) / len(set(steps))


def kendall(steps: Sequence[int]) -> tuple[float, float]:
    """Kendall's tau and tau_b of position and step, over pairs i < j with C in order, D reversed and X tied:

        tau = (C - D) / (n (n - 1) / 2),   tau_b = (C - D) / sqrt(n (n - 1) / 2 (n (n - 1) / 2 - X))

    One position is in order: tau = 1.
    """
    times = np.asarray(steps)
    pairs = len(times) * (len(times) - 1) // 2
    if not pairs:
        return 1.0, math.nan
    sign = np.sign(times[None, :] - times[:, None])[np.triu_indices(len(times), 1)]
    excess, untied = int(sign.sum()), int(np.count_nonzero(sign))
    return excess / pairs, excess / math.sqrt(pairs * untied) if untied else math.nan


def local_order(steps: Sequence[int], k: int = 1) -> float:
    """Share of writes that continue the k previous ones by one position each (local AR-ness@k, arXiv:2506.20639).

    Writes of one step count from left to right. Without k previous writes nothing is counted; nan if that is all.
    """
    order = np.argsort(np.asarray(steps), kind="stable")
    follows = np.diff(order) == 1
    if len(follows) < k:
        return math.nan
    runs = np.lib.stride_tricks.sliding_window_view(follows, k).all(1)
    return float(runs.mean())


def leftmost_order(steps: Sequence[int], k: int = 1) -> float:
    """Share of writes at one of the k leftmost positions that were open before their step (global AR-ness@k,
    arXiv:2506.20639). nan without positions."""
    times = np.asarray(steps)
    if not len(times):
        return math.nan
    still_open = times[None, :] >= times[:, None]  # [write, position]
    before = np.tril(still_open, -1).sum(1)  # open positions to the left of each write
    return float((before < k).mean())
