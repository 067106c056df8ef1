"""Drift: all positions run again when the values of the masked positions have changed enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.limits import MAX_SCALE, MAX_STEPS
from redraft.options import setting
from redraft.types import Request


@dataclass(frozen=True)
class Drift(CachePolicy):
    """``Delayed``, with a refresh when values drift instead of after a fixed number of steps.

    Target masks run at every pass. The change of their values in the last layer between passes measures how much
    their context has changed. With

        moved = sum over passes since the last refresh of mean over these masks of 1 - cos(v_now, v_before)

    all positions of a row run again when moved > ``drift``. This happens often early in a sequence, when each token
    changes much, and rarely later. Each row is refreshed independently. ``refresh`` > 0 also runs all positions every
    ``refresh`` steps.

    Elastic-Cache (Nguyen-Tri et al. 2025, arXiv:2510.14973) measures the drift of attention on the most-attended token,
    but fused kernels do not return attention weights. dLLM-Cache (Liu et al. 2025, arXiv:2506.06295) found that the
    change of a value vector predicts the change of the layer's output (correlation 0.94), and the store holds values.
    It recomputes the quarter of the tokens that changed most, in each layer. Here the decision is made per row and
    before the pass, so the network is unchanged.
    """

    drift: float = setting(0.1, "Change of the values above which all positions run again.", least=-1, most=MAX_SCALE)
    refresh: int = setting(
        0, "Steps after which all positions run again; 0: never.", least=0, most=MAX_STEPS, unit="steps"
    )

    watched_layer = -1  # the last layer: drift grows with depth (Elastic-Cache, figure 1)
    tries = {"drift": (0.02, 0.1, 0.5)}

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """As ``Delayed``, except for rows that have drifted: there, all positions run.

        Args:
            moved: [R] see above; None: no row has drifted.
        """
        refresh = narrowing.due(request, self.refresh)
        return narrowing.unsettled(request, stored, shift, refresh if moved is None else refresh | (moved > self.drift))
