"""Noise times of a batch, spread evenly so that the loss of a batch varies little."""

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
    """n times, each uniform on (0, 1], together one in each stratum of width 1/n, up to a common rotation.

    The rotation (as in Kingma et al. 2021, arXiv:2107.00630) makes the time of every single row uniform: in a batch
    sorted by length, fixed strata would give the short rows the same noise level for ever.

    Returns:
        [n] float64: near t = 0 a float32 ``1 - alpha(t)`` has lost its digits.
    """
    uniform = torch.rand(n + 1, generator=generator, device=generator.device, dtype=torch.float64)
    return (1.0 - torch.remainder(stratify(uniform[1:]) + uniform[0], 1.0)).to(device)


def discrete(n: int, steps: int, generator: torch.Generator, device: torch.device | None = None) -> Tensor:
    """n times from the grid {1/T, 2/T, ..., 1}, T = ``steps``, spread like ``continuous``. Returns [n] float64."""
    return torch.ceil(continuous(n, generator, device) * steps).clamp_(1, steps) / steps


def check_span(low: float, high: float, steps: int) -> None:
    """Raise UserError unless times may be drawn from [low, high]; a grid of steps is not cut short."""
    if not 0 <= low < high <= 1:
        raise UserError(f"times from low {low} to high {high} are no part of [0, 1].", "For example 0.3 and 0.8.")
    if steps and (low, high) != (0.0, 1.0):
        raise UserError("low and high cut continuous time, but steps ask for a grid.", "Set steps to 0.")
