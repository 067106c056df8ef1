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
    tries = {"refresh": (4, 8, 16)}

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward:
        """Keep the wanted positions and those whose token is not the one on record."""
        return _narrow.unsettled(ask, cells, shift, _narrow.due(ask, self.refresh))
