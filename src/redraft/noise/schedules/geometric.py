"""Geometric: alpha(t) = exp(-sigma(t)), sigma(t) = sigma_min^(1 - t) sigma_max^t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError


@dataclass(frozen=True)
class Geometric:
    """SEDD's geometric schedule (Lou et al. 2024, arXiv:2310.16834): the noise sigma grows by equal factors.

    It starts at alpha = exp(-sigma_min), a little below 1, and ends at exp(-sigma_max), a little above 0.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(
                f"schedule geometric: sigma_min {self.sigma_min} and sigma_max {self.sigma_max} are out of order.",
                "Choose 0 < sigma_min < sigma_max.",
            )

    @property
    def epsilon(self) -> float:
        return max(-math.expm1(-self.sigma_min), math.exp(-self.sigma_max))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return -torch.exp(-sigma) * sigma * math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t
