"""Linear: alpha(t) = 1 - (1 - eps) t; also called log-linear, for its sigma(t) = -log alpha(t)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.options import check, setting


@dataclass(frozen=True)
class Linear:
    """All noise levels are equally likely; the weight -alpha'/(1 - alpha) of the bound is 1/t.

    SEDD (Lou et al. 2024, arXiv:2310.16834) and MDLM (arXiv:2406.07524) use eps = 1e-3 to keep sigma(1) finite. redraft
    does not divide by alpha, so eps = 0 is allowed: at t = 1 every token is masked.
    """

    epsilon: float = setting(0.0, "alpha at t = 1.", least=0, below=1, reach=())

    def __post_init__(self) -> None:
        check(self)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.epsilon) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.epsilon - 1)
