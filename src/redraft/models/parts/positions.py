"""Rotary positions (Su et al. 2021, arXiv:2104.09864), in the rotate-half layout of Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotary_table(length: int, head_dim: int, theta: float) -> Tensor:
    """cos and sin of every position and pair: [length, 2, head_dim / 2]."""
    rate = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the halves (a, b) of ``x`` [R, Q, H, Dh] into (a cos - b sin, b cos + a sin).

    ``table`` [R or 1, Q, 2, Dh / 2].
    """
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _Rotate.apply(x, table)
        return result
    return _turn(x, table, 1)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back, so nothing but the table is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(table)
        return _turn(x, table, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (table,) = ctx.saved_tensors
        return _turn(grads[0], table, -1), None


def _turn(x: Tensor, table: Tensor, sign: int) -> Tensor:
    cos, sin = table[:, :, :1].to(x.dtype), table[:, :, 1:].to(x.dtype)
    a, b = x.chunk(2, -1)
    if torch.compiler.is_compiling():  # which fuses this by itself, and fails at outputs of unknown shape (torch 2.13)
        return torch.cat([a * cos - b * (sin * sign), b * cos + a * (sin * sign)], -1)
    turned = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    first, second = turned.chunk(2, -1)
    torch.mul(a, cos, out=first).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=second).addcmul_(a, sin, value=sign)
    return turned
