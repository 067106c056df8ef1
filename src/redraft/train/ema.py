"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """``shadow <- d shadow + (1 - d) weight`` after every update, with ``d = min(decay, (1 + n) / (10 + n))``.

    The warm-up of ``d`` (n updates so far) forgets the random initial weights, which matter in short runs. Averaging in
    place of the last weights: Polyak & Juditsky 1992; usual in diffusion models since Ho et al. 2020, arXiv:2006.11239.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.shadow = {name: p.detach().clone() for name, p in network.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the weights of one more optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        weights = dict(network.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [weights[name] for name in self.shadow], 1.0 - decay)

    @contextmanager
    def applied(self, network: nn.Module) -> Iterator[None]:
        """Inside, the network computes with the averaged weights."""
        self._swap(network)
        try:
            yield
        finally:
            self._swap(network)

    @torch.no_grad()
    def _swap(self, network: nn.Module) -> None:
        # Pointers are exchanged, not numbers: free of charge, and exact.
        weights = dict(network.named_parameters())
        for name in self.shadow:
            weight = weights[name]
            weight.data, self.shadow[name] = self.shadow[name], weight.data

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights by parameter name."""
        return self.shadow
