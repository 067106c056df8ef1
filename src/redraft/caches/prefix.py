"""Prefix: what lies before the block at work is computed when the block begins, and not again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches import _narrow
from redraft.types import Forward


@dataclass(frozen=True)
class Prefix:
    """Fast-dLLM's prefix cache (Wu et al. 2025, arXiv:2505.22618), for samplers that work block by block.

    A pass over everything when a block begins; then passes from the block to the end of the text. Approximate in a
    bidirectional network: keys and values of earlier positions saw the block as it was when it began. ``refresh`` > 0
    computes everything anew every so many steps as well.
    """

    refresh: int = 0

    exact = False

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward:
        """Drop the positions before the block where the record of their tokens still holds."""
        certain = _narrow.exact_prefix(ask, cells, shift)
        begin, _ = _narrow.region(ask)
        holds = (_narrow.prefix(_narrow.matching(ask, cells)) >= begin) & ~_narrow.due(ask, self.refresh)
        return _narrow.drop_prefix(ask, np.where(holds, np.maximum(certain, begin - shift), certain))
