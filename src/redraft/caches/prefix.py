"""Prefix: positions before the active block run once, when the block begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.types import Request


@dataclass(frozen=True)
class Prefix(CachePolicy):
    """Fast-dLLM's prefix cache (Wu et al. 2025, arXiv:2505.22618), for samplers that work block by block.

    When a block begins, all positions run. Later passes run from the block to the end of the sequence. In a
    bidirectional network this is approximate, because the keys and values of earlier positions were computed from the
    block's initial tokens. ``refresh`` > 0 also runs all positions every ``refresh`` steps.
    """

    refresh: int = setting(
        0, "Steps after which all positions run again; 0: never.", least=0, most=MAX_STEPS, unit="steps"
    )

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """Drop the positions before the block, in rows whose stored tokens there are unchanged."""
        exact = narrowing.exact_prefix(request, stored, shift)
        begin, _ = narrowing.region(request)
        valid = (narrowing.prefix(narrowing.matching(request, stored)) >= begin) & ~narrowing.due(request, self.refresh)
        return narrowing.drop_prefix(request, np.where(valid, np.maximum(exact, begin - shift), exact))
