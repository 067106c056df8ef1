"""Exponential: alpha(t) = exp(-sigma(t)), sigma(t) = sigma_min + (sigma_max - sigma_min) t^power."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError


@dataclass(frozen=True)
class Exponential:
    """Noise sigma that grows evenly (power 1: what MDLM, Sahoo et al. 2024, arXiv:2406.07524, calls linear), or as the
    noise of DDPM does, whose beta is linear (power 2; Ho et al. 2020, arXiv:2006.11239).

    It starts at alpha = exp(-sigma_min), a little below 1, and ends at exp(-sigma_max), a little above 0.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 10.0
    power: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_min < self.sigma_max:
            what = f"schedule exponential: sigma_min {self.sigma_min} and sigma_max {self.sigma_max} are out of order."
            raise UserError(what, "Choose 0 <= sigma_min < sigma_max.")
        if self.power <= 0:
            raise UserError(f"schedule exponential: power {self.power} must be positive.")

    @property
    def epsilon(self) -> float:
        return max(-math.expm1(-self.sigma_min), math.exp(-self.sigma_max))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-(self.sigma_min + (self.sigma_max - self.sigma_min) * t**self.power))

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * (self.sigma_max - self.sigma_min) * self.power * t ** (self.power - 1)
