"""Cosine: alpha(t) = eps + (1 - eps) cos(pi t / 2)^power."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.options import check, setting


@dataclass(frozen=True)
class Cosine:
    """MDLM's cosine (power 1) and cosine-squared (power 2) schedules (Sahoo et al. 2024, arXiv:2406.07524).

    alpha falls slowly at first, so that low noise levels are more frequent than high ones.
    """

    power: float = setting(1.0, "Exponent of the cosine: 1 is cosine, 2 is cosine squared.", least=1, reach=())
    epsilon: float = setting(0.0, "alpha at t = 1.", least=0, below=1, reach=())

    def __post_init__(self) -> None:
        check(self)

    def alpha(self, t: Tensor) -> Tensor:
        return self.epsilon + (1 - self.epsilon) * _cos(t) ** self.power

    def dalpha(self, t: Tensor) -> Tensor:
        slope = -(math.pi / 2) * torch.sin(t * (math.pi / 2))
        return (1 - self.epsilon) * self.power * _cos(t) ** (self.power - 1) * slope


def _cos(t: Tensor) -> Tensor:
    """cos(pi t / 2), clamped at 0: at t = 1 the rounded value would be -4e-8."""
    return torch.cos(t * (math.pi / 2)).clamp(min=0)
