"""One file = one forward process: how clean text becomes noise. A process meets the ``Process`` protocol."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from redraft.types import Spec


class Process(Protocol):
    """q(x_t | x_0) of one position, given alpha(t); positions are noised independently.

    It is Markov: with s < t, q(x_t | x_s) is the same process at alpha(t) / alpha(s). Distributions have a last axis
    over the vocabulary, the shapes before it (written ...) broadcast, and ``alpha`` has such a shape.
    """

    def corrupt(self, ids: Tensor, alpha: Tensor, can: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
        """Draw x_t: ``ids`` [B, L], ``alpha`` [B] or [B, L], ``can`` [B, L] bool (the rest stays) -> [B, L]."""
        ...

    def marginal(self, clean: Tensor, alpha: Tensor, spec: Spec) -> Tensor:
        """q(x_t | x_0) for a clean distribution [..., V] -> [..., V]."""
        ...

    def posterior(self, noisy: Tensor, clean: Tensor, alpha_s: Tensor, alpha_t: Tensor, spec: Spec) -> Tensor:
        """q(x_s | x_t, x_0), s < t: ``noisy`` ids [...], ``clean`` [..., V] -> [..., V].

        ``clean`` one-hot gives the true posterior; a model's prediction gives its step of the reverse process.
        """
        ...

    def prior(self, spec: Spec) -> Tensor:
        """The distribution at alpha = 0, [V]."""
        ...

    def draw(self, seed: Tensor, stamp: Tensor, pos: Tensor, spec: Spec) -> Tensor:
        """Tokens of pure noise, keyed like all drawing: ``seed`` [R], ``stamp`` [R], ``pos`` [R, W] -> [R, W]."""
        ...
