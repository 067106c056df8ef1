"""Normalisation layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _RMSNorm(torch.autograd.Function):
    """Hand-written forward and backward: on CPUs, autograd takes about three times as many passes over memory.

    With n = x / rms(x): dx = (g w - n mean(g w n)) / rms(x), dw = sum(g n).
    x may be bfloat16, as under autocast; the sums are float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = (norm.square_() / x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, weight)
        return (x * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, scale, weight = ctx.saved_tensors
        normal = x * scale
        grad = grads[0].float()
        product = grad * normal
        d_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        mean = torch.mv(product.flatten(0, -2), weight).div_(-x.shape[-1]).view_as(scale)
        d_x = normal.mul_(mean).addcmul_(grad, weight).mul_(scale)
        return d_x.to(x.dtype), d_weight, None


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and self.weight.dtype != torch.float64:
            result: Tensor = _RMSNorm.apply(x, self.weight.float(), self.eps)
            return result
        return F.rms_norm(x, self.weight.shape, _as_wide(self.weight, x), self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias (Ba et al. 2016, arXiv:1607.06450)."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else _as_wide(self.bias, x)
        return F.layer_norm(x, self.normalized_shape, _as_wide(self.weight, x), bias, self.eps)


def _as_wide(weight: Tensor, x: Tensor) -> Tensor:
    """The weight in the type of x if that is wider, which torch requires: FSDP2 gathers weights in bfloat16."""
    return weight.to(torch.promote_types(weight.dtype, x.dtype))
