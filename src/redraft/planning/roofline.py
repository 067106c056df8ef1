"""The roofline of decoding: how long a pass takes at least, and when a pass of many positions pays.

A pass over m positions of each of b rows, with c cached positions a row, computes and reads (Williams et al. 2009,
doi:10.1145/1498765.1498785, with the attention of Kaplan et al. 2020, arXiv:2001.08361)

    FLOP  = 2 P b m + 4 N d b m (c + m)           P weights, N layers, query width d
    bytes = w P + 2 N g kappa b (c + m)           w bytes a weight, K/V width g, kappa bytes a number
    time >= max(FLOP / F, bytes / W)              F FLOP/s, W bytes/s

Autoregression runs m = 1 and writes one token a pass. A diffusion model of the same weights that runs m positions is
faster only if it writes more than time(b, m) / time(b, 1) tokens a pass: the break-even. While b m is below the ridge
F / W, further positions cost little, because a pass takes as long as reading the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from redraft.planning.machine import Machine
from redraft.planning.twin import Outline


@dataclass(frozen=True)
class Decoder:
    """What of a model determines the time of a pass."""

    weights: float  # P, without embeddings that are only looked up
    layers: int
    query_width: int
    kv_width: int
    weight_bytes: float = 2.0
    cache_bytes: float = 2.0
    experts: tuple[int, int] = (1, 1)  # of each layer, and how many of them a position uses
    expert_weights: float = 0.0  # of all experts, a part of ``weights``

    @classmethod
    def of(cls, run: Outline, dtype: torch.dtype) -> Decoder:
        """The decoder of a run's model, with weights and cache in a type."""
        shape, network = run.shape, run.whole().network
        layers: list[Any] = [block.attention for block in network.blocks]  # which may differ: their mean counts
        looked_up = network.embedding.weight.numel() if not shape.tied else 0
        return cls(
            weights=run.parameters - looked_up,
            layers=shape.layers,
            query_width=round(sum(one.heads * one.head_dim for one in layers) / len(layers)),
            kv_width=round(sum(one.kv_heads * one.head_dim for one in layers) / len(layers)),
            weight_bytes=dtype.itemsize,
            cache_bytes=dtype.itemsize,
        )

    def flops(self, rows: float, positions: float, cached: float) -> float:
        """Operations of a pass."""
        used = self.weights - self.expert_weights * (1 - self.experts[1] / self.experts[0])
        pairs = 4 * self.layers * self.query_width * rows * positions * (cached + positions)
        return 2 * used * rows * positions + pairs

    def bytes(self, rows: float, positions: float, cached: float) -> float:
        """Bytes of weights and cache that a pass reads. Of experts, those that some position uses."""
        count, active = self.experts
        untouched = (1 - active / count) ** (rows * positions) if count > 1 else 0.0
        read = self.weights - self.expert_weights * untouched
        return self.weight_bytes * read + 2 * self.layers * self.kv_width * self.cache_bytes * rows * (
            cached + positions
        )

    def seconds(self, machine: Machine, rows: float, positions: float, cached: float) -> float:
        """The least time of a pass."""
        compute = self.flops(rows, positions, cached) / machine.flops(self.weight_bytes <= 2)
        return max(compute, self.bytes(rows, positions, cached) / machine.bandwidth)

    def break_even(self, machine: Machine, rows: float, positions: float, cached: float) -> float:
        """Tokens that a pass over ``positions`` must write to be as fast as autoregression with a cache."""
        return self.seconds(machine, rows, positions, cached) / self.seconds(machine, rows, 1, cached)
