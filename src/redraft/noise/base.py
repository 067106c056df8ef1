"""The base class of noise processes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from redraft.registry import Registered
from redraft.types import Spec


class NoiseSource(Registered, ABC):
    """What generation needs of a noise process: what a canvas starts with (see ``types.NoiseProcess``)."""

    masks: bool = False  # noise replaces tokens by the mask token

    @abstractmethod
    def sample(self, seed: Tensor, noise_step: Tensor, positions: Tensor, spec: Spec) -> Tensor:
        """Tokens of pure noise, keyed like all sampling: [R], [R], [R, W] -> [R, W]."""


class Process(NoiseSource):
    """q(x_t | x_0) of one position, given alpha(t); positions are noised independently.

    It is Markov: with s < t, q(x_t | x_s) is the same process at alpha(t) / alpha(s). Distributions have a last axis
    over the vocabulary, the shapes before it (written ...) broadcast, and ``alpha`` has such a shape.
    """

    @abstractmethod
    def corrupt(self, ids: Tensor, alpha: Tensor, can: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
        """Sample x_t: ``ids`` [B, L], ``alpha`` [B] or [B, L], ``can`` [B, L] bool (other positions stay) -> [B, L]."""

    @abstractmethod
    def marginal(self, clean: Tensor, alpha: Tensor, spec: Spec) -> Tensor:
        """q(x_t | x_0) for a clean distribution [..., V] -> [..., V]."""

    @abstractmethod
    def posterior(self, noisy: Tensor, clean: Tensor, alpha_s: Tensor, alpha_t: Tensor, spec: Spec) -> Tensor:
        """q(x_s | x_t, x_0), s < t: ``noisy`` ids [...], ``clean`` [..., V] -> [..., V].

        One-hot ``clean`` gives the true posterior; a model's prediction gives its step of the reverse process.
        """

    @abstractmethod
    def prior(self, spec: Spec) -> Tensor:
        """The distribution at alpha = 0, [V]."""
