"""Dual: everything but the block at work is computed when the block begins, and not again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches import _narrow
from redraft.types import Forward


@dataclass(frozen=True)
class Dual:
    """Fast-dLLM's dual cache (Wu et al. 2025, arXiv:2505.22618), for samplers that work block by block.

    A pass over everything when a block begins; then passes over the block alone, which see the earlier and the later
    positions as they were. Approximate: those saw the block as it was when it began. ``refresh`` > 0 computes
    everything anew every so many steps as well.
    """

    refresh: int = 0

    exact = False

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward:
        """Keep the block alone where the record of all other tokens still holds."""
        certain = _narrow.exact_prefix(ask, cells, shift)
        begin, end = _narrow.region(ask)
        real, columns = ask.pos.numpy() >= 0, np.arange(ask.x.shape[1])
        inside = (columns >= begin[:, None] - shift) & (columns < end[:, None])
        open_ = inside & (columns >= begin[:, None])  # the position before is run for its prediction: it must hold, too
        holds = (_narrow.matching(ask, cells) | open_ | ~real).all(1) & ~_narrow.due(ask, self.refresh)
        if not holds.any():
            return _narrow.drop_prefix(ask, certain)
        run = real & np.where(holds[:, None], inside, columns >= certain[:, None])
        return _narrow.only(ask, run, np.where(holds, _narrow.extent(ask), certain))
