"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864), in the rotate-half layout of Llama."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class RopeScaling:
    """Slower rotations for contexts longer than the original training context of ``original`` positions.

    ``linear`` divides every frequency by ``factor`` (Chen et al. 2023, arXiv:2306.15595). ``llama3`` divides
    frequencies with a wavelength above original / low, keeps those below original / high, and interpolates in between
    (Llama 3, arXiv:2407.21783). ``yarn`` interpolates linearly over the pairs that make between ``high`` and ``low``
    turns in the original context (``whole``: rounded to whole pairs), and multiplies queries and keys by ``size`` (Peng
    et al. 2023, arXiv:2309.00071).

    With ``growth``, queries at position p are also multiplied by 1 + growth ln(1 + floor(p / original)) (Llama 4).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    low: float = 1.0
    high: float = 4.0
    original: int = 8192
    size: float = 1.0
    whole: bool = True
    growth: float = 0.0

    def __call__(self, rate: Tensor, theta: float) -> Tensor:
        """Frequencies [P] of P pairs, theta^(-p / P), -> scaled frequencies [P]."""
        if self.kind == "linear":
            return rate / self.factor
        if self.kind == "llama3":
            turns = self.original * rate / (2 * math.pi)  # within the original context
            keep = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        else:
            pairs, context = len(rate), self.original / (2 * math.pi)
            first, last = (pairs * math.log(context / turns, theta) for turns in (self.high, self.low))
            if self.whole:
                first, last = math.floor(first), math.ceil(last)
            first, last = max(first, 0), min(last, 2 * pairs - 1)
            number = torch.arange(pairs, dtype=rate.dtype, device=rate.device)
            keep = 1 - ((number - first) / ((last - first) or 1e-3)).clamp(0, 1)
        return keep * rate + (1 - keep) * rate / self.factor


def query_growth(positions: Tensor, stretch: RopeScaling) -> Tensor:
    """What queries at ``positions`` [R, Q] are multiplied by, [R, Q] float32 (``RopeScaling.growth``)."""
    turns = positions.div(stretch.original, rounding_mode="floor")
    return 1 + stretch.growth * torch.log1p(turns.float())


def rotary_table(
    length: int, head_dim: int, theta: float, stretch: RopeScaling | None = None, turning: int | None = None
) -> Tensor:
    """cos and sin of every position and pair -> [C, 2, Dr / 2] with C = ``length`` and Dr = ``head_dim``.

    Always on the host, also when a network is built on the meta device, because the table is computed and not stored.

    Args:
        turning: the number of pairs that turn, the fastest ones; the others stand still. None: all.
    """
    pair = torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu")
    rate = theta ** (-pair / max(head_dim, 1))
    rate, size = (stretch(rate, theta), stretch.size) if stretch else (rate, 1.0)
    if turning is not None:
        rate[turning:] = 0.0
    angle = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * rate
    return torch.stack([angle.cos(), angle.sin()], 1).mul(size).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the halves (a, b) of ``x`` [R, Q, H, Dh] into (a cos - b sin, b cos + a sin).

    ``table`` [R or 1, Q, 2, Dr / 2]. If Dr < Dh, components after the first Dr are unchanged (partial rotary).
    """
    width = 2 * table.shape[-1]
    if width < x.shape[-1]:
        return torch.cat([rotate(x[..., :width], table), x[..., width:]], -1) if width else x
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Rotate.apply(x, table)
        return result
    return _rotated(x, table, 1)


class _Rotate(torch.autograd.Function):
    """The gradient of a rotation is the inverse rotation, so only the table is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return _rotated(x, table, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return _rotated(grads[0], table, -1), None


def _rotated(x: Tensor, table: Tensor, sign: int) -> Tensor:
    cos, sin = table[:, :, :1].to(x.dtype), table[:, :, 1:].to(x.dtype)
    a, b = x.chunk(2, -1)
    if torch.compiler.is_compiling():  # it fuses this expression, and fails at outputs of unknown shape (torch 2.13)
        return torch.cat([a * cos - b * (sin * sign), b * cos + a * (sin * sign)], -1)
    rotated = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = rotated.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=sign)
    return rotated
