"""Polynomial: alpha(t) = 1 - t^power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from redraft.errors import UserError


@dataclass(frozen=True)
class Polynomial:
    """The square (power 2) and square-root (power 1/2) schedules of BD3-LM (Arriola et al. 2025, arXiv:2503.09573).

    The bound's weight -alpha'/(1 - alpha) is power/t. A power above 1 meets light noise more often, below 1 heavy.
    """

    epsilon: ClassVar[float] = 0.0

    power: float = 2.0

    def __post_init__(self) -> None:
        if self.power <= 0:
            raise UserError(f"schedule polynomial: power {self.power} must be positive.")

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)
