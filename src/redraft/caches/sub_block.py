"""Sub-block: a block runs once when one of its sub-blocks begins, then the sub-block alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.types import Request


@dataclass(frozen=True)
class SubBlock(CachePolicy):
    """The hierarchical cache of Fast-dLLM v2 (Wu et al. 2025, arXiv:2509.26328), for the sampler ``sub_blocks``.

    Finished blocks are reused exactly. Within the current block, everything runs until the first position of the active
    sub-block is written. Then only the sub-block runs, and the keys and values of the rest of the block are
    approximate, because they were computed from the sub-block's earlier tokens. ``refresh`` > 0 also runs the block
    every ``refresh`` steps.
    """

    refresh: int = setting(
        0, "Steps after which the whole block runs again; 0: never.", least=0, most=MAX_STEPS, unit="steps"
    )

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """Keep only the sub-block, in rows whose other stored tokens are unchanged and whose first target is not the
        first position of the sub-block."""
        exact = narrowing.exact_prefix(request, stored, shift)
        begin, end = narrowing.region(request)
        real, columns = request.positions.numpy() >= 0, np.arange(request.tokens.shape[1])
        inside = (columns >= begin[:, None]) & (columns < end[:, None])
        valid = (narrowing.matching(request, stored) | inside | ~real).all(1)
        valid &= request.targets.numpy()[:, 0] > begin
        valid &= ~narrowing.due(request, self.refresh)
        if not valid.any():
            return narrowing.drop_prefix(request, exact)
        run = real & np.where(valid[:, None], inside, columns >= exact[:, None])
        return narrowing.only(request, run, np.where(valid, narrowing.extent(request), exact))
