"""Noise times of a batch, stratified to reduce the variance of its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.errors import UserError


def stratify(uniform: Tensor) -> Tensor:
    """One time in each of n equal strata of [0, 1): ``t_i = (i + u_i) / n``.

    The low-discrepancy sampler of MDLM (Sahoo et al. 2024, arXiv:2406.07524). ``uniform`` [n] in [0, 1) -> [n].
    """
    n = uniform.shape[0]
    return (torch.arange(n, device=uniform.device, dtype=uniform.dtype) + uniform) / n


def continuous(n: int, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """n times, each uniform on (0, 1] and one in each stratum of width 1/n, up to a common rotation.

    The rotation (as in Kingma et al. 2021, arXiv:2107.00630) makes the time of every single row uniform. With fixed
    strata, the short rows of a batch sorted by length would always get the same noise level.

    Returns:
        [n] float64, because in float32 ``1 - alpha(t)`` has no precision near t = 0.
    """
    uniform = torch.rand(n + 1, generator=generator, device=generator.device, dtype=torch.float64)
    return (1.0 - torch.remainder(stratify(uniform[1:]) + uniform[0], 1.0)).to(device)


def discrete(n: int, steps: int, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """n times from the grid {1/T, 2/T, ..., 1}, T = ``steps``, spread like ``continuous``. Returns [n] float64."""
    return torch.ceil(continuous(n, generator, device) * steps).clamp_(1, steps) / steps


def check_span(t_min: float, t_max: float, steps: int) -> None:
    """Check the interval that times are drawn from.

    Raises:
        UserError: it is not within [0, 1], or it is restricted in discrete time.
    """
    if not 0 <= t_min < t_max <= 1:
        raise UserError(
            f"t_min = {t_min} and t_max = {t_max} are not an interval of times in [0, 1].",
            "For example t_min = 0.3 and t_max = 0.8.",
        )
    if steps and (t_min, t_max) != (0.0, 1.0):
        raise UserError("t_min and t_max can't be combined with steps (discrete time).", "Set steps to 0.")
