"""Exact: reuse what was computed from the same tokens and could not have seen anything else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches import _narrow
from redraft.types import Forward


@dataclass(frozen=True)
class Exact:
    """Prefix reuse without any error.

    A cell still holds if its token and every token it could see are unchanged. Seen from the front, that is the
    longest prefix whose tokens match the record, cut back to where a stage begins: any position of a causal model,
    the end of an isolated prompt, a block of a block-causal model, nothing of a fully bidirectional one. In a network
    told the time every cell depends on it, and the time changes at every pass: nothing holds.
    """

    exact = True

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int) -> Forward:
        """Drop the positions that need not run.

        Args:
            cells: [R, C] token on record for each cell, -1 for none.
            shift: the network's; the position before the first wanted one must run where it is 1.
        """
        return _narrow.drop_prefix(ask, _narrow.exact_prefix(ask, cells, shift))
