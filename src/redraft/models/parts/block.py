"""The pre-norm residual block of most networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts.attention import Attention, AttentionContext
from redraft.models.parts.time import Modulation


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    With time conditioning, the output of each norm is shifted and scaled and each branch is gated (adaptive layer
    norm, arXiv:2212.09748).
    """

    def __init__(
        self,
        attention_norm: nn.Module,
        attention: Attention,
        mlp_norm: nn.Module,
        mlp: nn.Module,
        modulation: Modulation | None = None,
    ) -> None:
        super().__init__()
        self.attention_norm, self.attention = attention_norm, attention
        self.mlp_norm, self.mlp = mlp_norm, mlp
        self.modulation = modulation
        self.dropout = 0.0

    def forward(self, x: Tensor, context: AttentionContext, condition: Tensor | None) -> Tensor:
        if self.modulation is None or condition is None:
            x = self.after_attention(x + self._drop(self.attention(self.attention_norm(x), context)), context)
            return x + self._drop(self.mlp(self.mlp_norm(x)))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition)
        y = torch.addcmul(shift_a, self.attention_norm(x), 1 + scale_a)
        x = self.after_attention(torch.addcmul(x, gate_a, self._drop(self.attention(y, context))), context)
        y = torch.addcmul(shift_m, self.mlp_norm(x), 1 + scale_m)
        return torch.addcmul(x, gate_m, self._drop(self.mlp(y)))

    def after_attention(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Hook between attention and MLP, [R, Q, D] -> [R, Q, D]; by default the identity."""
        return x

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x
