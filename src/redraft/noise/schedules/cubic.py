"""Cubic: alpha(t) = (1 - t)^power. Most times have high noise levels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from redraft.options import check, setting


@dataclass(frozen=True)
class Cubic:
    """The schedule of Edit Flows (Havasi et al. 2025, arXiv:2506.09018): kappa(s) = s^3 in its own time s = 1 - t."""

    epsilon: ClassVar[float] = 0.0

    power: float = setting(3.0, "Exponent of 1 - t.", least=1, reach=())

    def __post_init__(self) -> None:
        check(self)

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t) ** self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * (1 - t) ** (self.power - 1)
