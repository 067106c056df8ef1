"""Noise time as a condition: sinusoidal features and adaptive layer norm (Peebles & Xie 2022, arXiv:2212.09748)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class TimeEmbedding(nn.Module):
    """t in [0, 1] -> vector, through sines and cosines of ``scale`` t and a two-layer MLP."""

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
    """Condition -> ``parts`` vectors of width ``dim``; zero at the start, so that a block begins as the identity."""

    def __init__(self, dim: int, parts: int, condition: int = 0) -> None:  # condition: its width; 0: dim
        super().__init__()
        self.project = nn.Linear(condition or dim, parts * dim)
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """[R, D] -> ``parts`` tensors [R, 1, D]."""
        return self.project(F.silu(condition))[:, None].chunk(self.parts, -1)
