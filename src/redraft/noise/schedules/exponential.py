"""Exponential: alpha(t) = exp(-sigma(t)), sigma(t) = sigma_min + (sigma_max - sigma_min) t^power."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.options import check, setting


@dataclass(frozen=True)
class Exponential:
    """With power 1, sigma grows linearly: the linear schedule of MDLM (Sahoo et al. 2024, arXiv:2406.07524). With power
    2 it is the schedule of DDPM, whose beta is linear (Ho et al. 2020, arXiv:2006.11239).

    alpha starts at exp(-sigma_min), slightly below 1, and ends at exp(-sigma_max), slightly above 0.
    """

    sigma_min: float = setting(1e-4, "sigma at t = 0.", least=0, reach=())
    sigma_max: float = setting(10.0, "sigma at t = 1; above sigma_min.", above=0, reach=())
    power: float = setting(2.0, "Exponent of t: 1 is linear sigma, 2 is linear beta.", above=0, reach=())

    def __post_init__(self) -> None:
        check(self)
        if self.sigma_min >= self.sigma_max:
            raise UserError(
                f"sigma_min = {self.sigma_min} is not below sigma_max = {self.sigma_max}.",
                "Use sigma_min < sigma_max.",
            )

    @property
    def epsilon(self) -> float:
        """The larger of 1 - alpha(0) and alpha(1)."""
        return max(-math.expm1(-self.sigma_min), math.exp(-self.sigma_max))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-(self.sigma_min + (self.sigma_max - self.sigma_min) * t**self.power))

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.alpha(t) * (self.sigma_max - self.sigma_min) * self.power * t ** (self.power - 1)
