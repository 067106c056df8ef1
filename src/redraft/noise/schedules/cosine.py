"""Cosine: alpha(t) = eps + (1 - eps) cos(pi t / 2)^power."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError


@dataclass(frozen=True)
class Cosine:
    """MDLM's cosine (power 1) and cosine-squared (power 2) schedules (Sahoo et al. 2024, arXiv:2406.07524).

    Noise comes slowly at first, so that light noise is met more often than heavy noise.
    """

    power: float = 1.0
    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if self.power < 1:
            raise UserError(f"schedule cosine: power {self.power} is below 1.", "Use 1 or more.")

    def alpha(self, t: Tensor) -> Tensor:
        return self.epsilon + (1 - self.epsilon) * _cos(t) ** self.power

    def dalpha(self, t: Tensor) -> Tensor:
        slope = -(math.pi / 2) * torch.sin(t * (math.pi / 2))
        return (1 - self.epsilon) * self.power * _cos(t) ** (self.power - 1) * slope


def _cos(t: Tensor) -> Tensor:
    """cos(pi t / 2), never below 0: at t = 1 the rounded value would be -4e-8."""
    return torch.cos(t * (math.pi / 2)).clamp(min=0)
