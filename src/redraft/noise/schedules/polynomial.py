"""Polynomial: alpha(t) = 1 - t^power."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from redraft.options import check, setting


@dataclass(frozen=True)
class Polynomial:
    """The square (power 2) and square-root (power 1/2) schedules of BD3-LM (Arriola et al. 2025, arXiv:2503.09573).

    The weight -alpha'/(1 - alpha) of the bound is power/t. With power above 1, low noise levels are more frequent; with
    power below 1, high noise levels.
    """

    epsilon: ClassVar[float] = 0.0

    power: float = setting(2.0, "Exponent of t.", above=0, reach=())

    def __post_init__(self) -> None:
        check(self)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t**self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * t ** (self.power - 1)
