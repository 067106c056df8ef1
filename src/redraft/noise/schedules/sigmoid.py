"""Sigmoid: alpha(t) falls from 1 to 0 along a piece of the logistic curve."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.options import check, setting


@dataclass(frozen=True)
class Sigmoid:
    """The sigmoid schedule of Jabri et al. 2022 (arXiv:2212.11972), with u(t) = start + (end - start) t:

        alpha(t) = (s(end / tau) - s(u / tau)) / (s(end / tau) - s(start / tau)),    s the logistic function

    It spends less time than the cosine at the ends, where there is little to learn. ``tau`` below 1 makes it steeper.
    In gaussian diffusion, alpha is the variance of the signal.
    """

    start: float = setting(-3.0, "u at t = 0.", reach=())
    end: float = setting(3.0, "u at t = 1; above start.", reach=())
    tau: float = setting(1.0, "Temperature of the logistic function; below 1 is steeper.", above=0, reach=())

    epsilon = 0.0

    def __post_init__(self) -> None:
        check(self)
        if self.start >= self.end:
            raise UserError(f"start = {self.start} is not below end = {self.end}.", "Use start < end.")

    def alpha(self, t: Tensor) -> Tensor:
        first, last = self._at(torch.zeros_like(t)), self._at(torch.ones_like(t))
        return ((last - self._at(t)) / (last - first)).clamp(0, 1)

    def dalpha(self, t: Tensor) -> Tensor:
        first, last, here = self._at(torch.zeros_like(t)), self._at(torch.ones_like(t)), self._at(t)
        return -here * (1 - here) * (self.end - self.start) / self.tau / (last - first)

    def _at(self, t: Tensor) -> Tensor:
        return torch.sigmoid((self.start + (self.end - self.start) * t) / self.tau)
