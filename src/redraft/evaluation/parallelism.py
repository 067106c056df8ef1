"""Tokens per forward pass, and accuracy under parallelism: how much quality is left when more tokens share a pass."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from redraft.metrics import Array

ALPHA = 3.0  # how steeply a loss of quality is punished
DROP = 5.0  # points below the first one at which a curve ends


def tokens_per_pass(tokens: int, ended: int, passes: int) -> float:
    """Completion tokens for each forward pass, from counts summed over all rows; 1 by definition for autoregression.

    Tokens count up to and with the end-of-text, and no padding; those of failed answers count too. A pass that only
    stores keys and values, one for guidance, one that verifies, and the first one over the prompt, which already
    predicts, count as passes. nan without passes.

    Args:
        tokens: without end-of-text tokens. ended: rows that generated one. passes: summed over rows.
    """
    return (tokens + ended) / passes if passes else math.nan


def aup(tokens: Sequence[float], quality: Sequence[float], best: float) -> float:
    """Accuracy under parallelism of one method (the measure of d3LLM).

    With points (rho, y), tokens per pass and quality in per cent, by increasing rho, those with y >= y_1 - 5 kept:

        AUP = rho_1 y_1 + sum_{i > 1} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2
        W(y) = min(exp(-3 (1 - y / best)), 1)

    A method with one point has rho y. The value depends on ``best``, so it changes when a rival improves.

    Args:
        best: the best quality of any method on the task, above 0.
    Raises:
        ValueError: no point, other numbers of tokens and qualities, or ``best`` is not above 0.
    """
    if not len(tokens) or len(tokens) != len(quality) or best <= 0:
        raise ValueError("AUP needs points (tokens per pass, quality) and a best quality above 0")
    order = np.argsort(np.asarray(tokens, dtype=np.float64), kind="stable")
    rho, y = np.asarray(tokens, dtype=np.float64)[order], np.asarray(quality, dtype=np.float64)[order]
    kept = y >= y[0] - DROP
    rho, y = rho[kept], y[kept]
    weighted = y * np.minimum(np.exp(-ALPHA * (1 - y / best)), 1.0)
    return float(rho[0] * y[0] + (np.diff(rho) * (weighted[1:] + weighted[:-1]) / 2).sum())


def aup_draws(tokens: Sequence[float], quality: Array, best: Array) -> Array:
    """AUP in each bootstrap resample [R].

    Args:
        quality: [S, R] of each point. best: [R] the best quality of any method in the same resample.
    """
    return np.array(
        [aup(tokens, quality[:, at].tolist(), max(float(best[at]), 1e-9)) for at in range(quality.shape[1])]
    )
