"""Exact: reuse the keys and values of a prefix whose tokens, and all that it attends to, are unchanged."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from redraft.caches.base import CachePolicy
from redraft.caches.shared import narrowing
from redraft.types import Request


@dataclass(frozen=True)
class Exact(CachePolicy):
    """Prefix reuse without approximation.

    The keys and values of a position are valid if its token and every token that it attends to are unchanged. So the
    valid positions are the longest prefix whose tokens match the stored ones, shortened to the start of an attention
    group: any position of a causal model, the end of an isolated prompt, a block of a block-causal model, nothing in a
    fully bidirectional model. In a network conditioned on time, all keys and values depend on the time, which changes
    at every pass, so nothing is reused.
    """

    exact = True

    def narrow(self, request: Request, stored: np.ndarray, shift: int, moved: np.ndarray | None = None) -> Request:
        """Drop the exact prefix. With ``shift`` 1, the position before the first target runs too."""
        return narrowing.drop_prefix(request, narrowing.exact_prefix(request, stored, shift))
