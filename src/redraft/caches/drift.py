"""Drift: everything is computed anew once what is computed at every pass anyway has moved far enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches import _narrow
from redraft.types import Forward


@dataclass(frozen=True)
class Drift:
    """``Delayed``, refreshed when values drift and not every so many steps.

    Masks that are predicted run at every pass. How far their values move in the last layer, from one pass to the next,
    tells how much the text around them has changed its meaning: with

        moved = sum over passes since the last refresh of mean over these masks of 1 - cos(v_now, v_before)

    everything is computed anew once moved > ``drift``. Early in a text, when each token changes much, that is often;
    later seldom. Each row is refreshed on its own. ``refresh`` > 0 computes everything anew every so many steps, too.

    Elastic-Cache (Nguyen-Tri et al. 2025, arXiv:2510.14973) tests the drift of attention on the most-attended token.
    Attention weights are what fused kernels never write down; dLLM-Cache (Liu et al. 2025, arXiv:2506.06295) found that
    the change of a value vector foretells that of the layer's output (correlation 0.94), and values are in the store.
    It recomputes the quarter of the tokens that moved most, layer by layer; here the decision is for the whole row and
    before the pass, so that the network runs as it is.
    """

    drift: float = 0.1
    refresh: int = 0

    exact = False
    watches = -1  # the last layer: drift grows with depth (Elastic-Cache, figure 1)
    tries = {"drift": (0.02, 0.1, 0.5)}

    def narrow(self, ask: Forward, cells: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Forward:
        """Keep the wanted positions and those whose token is not the one on record, but in rows that have drifted.

        Args:
            moved: [R] see above; None: nothing is known to have moved.
        """
        anew = _narrow.due(ask, self.refresh)
        return _narrow.unsettled(ask, cells, shift, anew if moved is None else anew | (moved > self.drift))
