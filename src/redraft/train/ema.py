"""An exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """``shadow <- d shadow + (1 - d) weight`` after every update, with ``d = min(decay, (1 + n) / (10 + n))``.

    n is the number of updates so far. The warm-up of ``d`` forgets the random initial weights, which matter in short
    runs. Averaged weights instead of the last: Polyak & Juditsky 1992; usual in diffusion models since Ho et al. 2020,
    arXiv:2006.11239.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._weights = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
        self.shadow = {name: weight.clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Add the weights after one more update to the average."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        torch._foreach_lerp_(list(self.shadow.values()), list(self._weights.values()), 1.0 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        # Numbers are exchanged, not pointers: what gathers the parts of sharded weights keeps its own.
        for name, shadow in self.shadow.items():
            weight = self._weights[name]
            kept = weight.clone()
            weight.copy_(shadow)
            shadow.copy_(kept)

    def tensors(self) -> dict[str, Tensor]:
        """The averaged weights [...] by parameter name."""
        return self.shadow
