"""Delayed: a token is cached one pass after it was written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.types import Request


@dataclass(frozen=True)
class Delayed(CachePolicy):
    """dKV-Cache-Decode (Ma et al. 2025, arXiv:2505.15781): only masks and tokens written at the last step run.

    The keys and values of a position change most when its token is written. One pass later they are reused. This is
    approximate, because they were computed when other positions were still masked. Every ``refresh`` steps all
    positions run.
    """

    refresh: int = setting(
        8, "Steps after which all positions run again; 0: never.", least=0, most=MAX_STEPS, unit="steps"
    )

    tries = {"refresh": (4, 8, 16)}

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """Keep the target positions and those whose token differs from the stored one."""
        return narrowing.unsettled(request, stored, shift, narrowing.due(request, self.refresh))
