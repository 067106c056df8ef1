"""Feed-forward layers."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up. Writes both gradients into one buffer; autograd would zero, fill and add two buffers."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, -1)
        d_both = torch.empty_like(both)
        d_gate, d_up = d_both.chunk(2, -1)
        torch.mul(grads[0], F.silu(gate), out=d_up)
        d_gate.copy_(torch.ops.aten.silu_backward(grads[0] * up, gate))
        return d_both


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202), with gate and up in one matrix product."""

    def __init__(self, dim: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        both = self.gate_up(x)
        if both.device.type == "cpu" and torch.is_grad_enabled():
            return self.down(_GatedSiLU.apply(both))
        gate, up = both.chunk(2, -1)
        return self.down(F.silu(gate) * up)


Activation = Literal["gelu", "gelu_tanh", "relu", "silu"]


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation function to x [...] -> [...].

    ``gelu_tanh`` is the approximation of GPT-2 (Hendrycks & Gimpel 2016, arXiv:1606.08415).
    """
    if activation == "gelu":
        return F.gelu(x)
    if activation == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return F.relu(x) if activation == "relu" else F.silu(x)


class Mlp(nn.Module):
    """down(act(up(x))), with biases (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, dim: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.down(activate(self.up(x), self.activation))


class GatedMlp(nn.Module):
    """down(act(gate(x)) * up(x)) for any activation; for SiLU use ``SwiGLU``."""

    def __init__(self, dim: int, hidden: int, activation: Activation, bias: bool) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=bias)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.activation: Activation = activation

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(activate(gate, self.activation) * up)
