"""Cubic: alpha(t) = (1 - t)^power, most of the time spent near pure noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from redraft.errors import UserError


@dataclass(frozen=True)
class Cubic:
    """The schedule of Edit Flows (Havasi et al. 2025, arXiv:2506.09018): kappa(s) = s^3 in its own time s = 1 - t."""

    epsilon: ClassVar[float] = 0.0

    power: float = 3.0

    def __post_init__(self) -> None:
        if self.power < 1:
            raise UserError(f"schedule cubic: power {self.power} must be at least 1.")

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * (1 - t) ** (self.power - 1)
