"""Logarithmic: alpha(t) = 1 - log2(1 + t)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Logarithmic:
    """The logarithmic schedule of BD3-LM (Arriola et al. 2025, arXiv:2503.09573): slightly more high noise."""

    epsilon: ClassVar[float] = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.log1p(t).div(math.log(2)).clamp(max=1)

    def dalpha(self, t: Tensor) -> Tensor:
        return -1 / ((1 + t) * math.log(2))
