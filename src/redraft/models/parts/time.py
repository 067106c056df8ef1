"""Time conditioning: sinusoidal features and adaptive layer norm (Peebles & Xie 2022, arXiv:2212.09748)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeEmbedding(nn.Module):
    """Times [R] in [0, 1] -> vectors [R, D]: sines and cosines of ``scale`` t, then a two-layer MLP."""

    def __init__(self, dim: int, features: int = 256, scale: float = 1000.0) -> None:
        super().__init__()
        self.features, self.scale = features, scale
        self.first = nn.Linear(features, dim)
        self.second = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        half = self.features // 2
        rate = torch.exp(-math.log(10_000) * torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angle = self.scale * t.float()[:, None] * rate
        return self.second(F.silu(self.first(torch.cat([angle.cos(), angle.sin()], -1).to(self.first.weight.dtype))))


class Modulation(nn.Module):
    """Condition -> ``parts`` vectors of width ``dim``. Networks initialise it so that it has no effect at first."""

    def __init__(self, dim: int, parts: int, condition: int = 0) -> None:  # condition: width of the input; 0: dim
        super().__init__()
        self.project = nn.Linear(condition or dim, parts * dim)
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Condition [R, D] -> ``parts`` tensors [R, 1, D]."""
        return self.project(F.silu(condition))[:, None].chunk(self.parts, -1)
