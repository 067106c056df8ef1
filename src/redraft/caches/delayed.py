"""Delayed: a written token is computed once more, the pass after it was written, and then kept."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches import _narrow
from redraft.types import Forward


@dataclass(frozen=True)
class Delayed:
    """dKV-Cache-Decode (Ma et al. 2025, arXiv:2505.15781): only masks and tokens written at the last step run.

    A position's keys and values change most when its token is written; one pass later they are taken as settled.
    Approximate: they saw the masks that have been filled since. Every ``refresh`` steps everything is computed anew.
    """

    refresh: int = 8

    exact = False

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward:
        """Keep the wanted positions and those whose token is not the one on record."""
        certain = _narrow.exact_prefix(ask, cells, shift)
        known = (cells[:, : ask.x.shape[1]] >= 0) | (ask.pos.numpy() < 0)
        holds = known.all(1) & ~_narrow.due(ask, self.refresh)
        if not holds.any():
            return _narrow.drop_prefix(ask, certain)
        real, columns = ask.pos.numpy() >= 0, np.arange(ask.x.shape[1])
        stale = ~_narrow.matching(ask, cells)
        want = ask.want.numpy()
        row, column = np.nonzero(want >= 0)
        stale[row, want[row, column] - shift] = True
        run = real & np.where(holds[:, None], stale, columns >= certain[:, None])
        return _narrow.only(ask, run, np.where(holds, _narrow.extent(ask), certain))
