"""Linear: alpha(t) = 1 - (1 - eps) t; called log-linear for its sigma(t) = -log alpha(t)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Linear:
    """Every noise level is equally likely; the bound's weight -alpha'/(1 - alpha) is 1/t.

    SEDD (Lou et al. 2024, arXiv:2310.16834) and MDLM (arXiv:2406.07524) take eps = 1e-3 to keep sigma(1) finite;
    nothing here divides by alpha, so that eps = 0 ends in masks alone.
    """

    epsilon: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.epsilon) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.epsilon - 1)
