"""Geometric: alpha(t) = exp(-sigma(t)), sigma(t) = sigma_min^(1 - t) sigma_max^t."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.options import check, setting


@dataclass(frozen=True)
class Geometric:
    """SEDD's geometric schedule (Lou et al. 2024, arXiv:2310.16834): sigma grows by the same factor in equal times.

    alpha starts at exp(-sigma_min), slightly below 1, and ends at exp(-sigma_max), slightly above 0.
    """

    sigma_min: float = setting(1e-3, "sigma at t = 0.", above=0, reach=())
    sigma_max: float = setting(20.0, "sigma at t = 1; above sigma_min.", above=0, reach=())

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
        return torch.exp(-self._sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        sigma = self._sigma(t)
        return -torch.exp(-sigma) * sigma * math.log(self.sigma_max / self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min ** (1 - t) * self.sigma_max**t
