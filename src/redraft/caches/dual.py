"""Dual: positions outside the active block run once, when the block begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.types import Request


@dataclass(frozen=True)
class Dual(CachePolicy):
    """Fast-dLLM's dual cache (Wu et al. 2025, arXiv:2505.22618), for samplers that work block by block.

    When a block begins, all positions run. Later passes run the block alone and read the keys and values before and
    after it from the store. This is approximate, because these were computed from the block's initial tokens.
    ``refresh`` > 0 also runs all positions every ``refresh`` steps.
    """

    refresh: int = setting(
        0, "Steps after which all positions run again; 0: never.", least=0, most=MAX_STEPS, unit="steps"
    )

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """Keep only the block, in rows whose other stored tokens are unchanged."""
        exact = narrowing.exact_prefix(request, stored, shift)
        begin, end = narrowing.region(request)
        real, columns = request.positions.numpy() >= 0, np.arange(request.tokens.shape[1])
        inside = (columns >= begin[:, None] - shift) & (columns < end[:, None])
        # With shift 1, the position before the block runs too. Its token must be unchanged like those outside.
        block = inside & (columns >= begin[:, None])
        valid = (narrowing.matching(request, stored) | block | ~real).all(1) & ~narrowing.due(request, self.refresh)
        if not valid.any():
            return narrowing.drop_prefix(request, exact)
        run = real & np.where(valid[:, None], inside, columns >= exact[:, None])
        return narrowing.only(request, run, np.where(valid, narrowing.extent(request), exact))
