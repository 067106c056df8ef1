"""The BERT encoder with its language-modelling head: post-norm, learned position embeddings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, AttentionContext, attention_context, rotary_positions
from redraft.models.parts.backbone import EVERY, Backbone, gather_targets
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.flops import ForwardCost, matrix_entries
from redraft.models.parts.mlp import Activation, Mlp, activate
from redraft.models.parts.norms import LayerNorm
from redraft.models.parts.store import KeyValueView
from redraft.runtime import upload
from redraft.types import Forward


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Shape of a ``Bert``. ``mlp_dim`` of 0 means 4 dim."""

    vocab_size: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp_dim: int = 0
    max_length: int = 512
    segments: int = 2
    norm_eps: float = 1e-12
    activation: Activation = "gelu"
    tied: bool = True

    shift = 0
    timed = False

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"model: dim = {self.dim} can't be split into {self.heads} heads.", "Change dim or heads.")

    @property
    def key_heads(self) -> int:
        return self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim or 4 * self.dim


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)) (Vaswani et al. 2017, arXiv:1706.03762)."""

    def __init__(self, c: Config, layer: int) -> None:
        super().__init__()
        self.attention = Attention(c.dim, c.heads, c.heads, False, 0.0, layer, qkv_bias=True, out_bias=True)
        self.attention_norm = LayerNorm(c.dim, c.norm_eps)
        self.mlp = Mlp(c.dim, c.hidden, c.activation)
        self.mlp_norm = LayerNorm(c.dim, c.norm_eps)
        self.dropout = 0.0

    def forward(self, x: Tensor, context: AttentionContext, condition: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self._drop(self.attention(x, context)))
        return self.mlp_norm(x + self._drop(self.mlp(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x


class Bert(Backbone):
    """Devlin et al. 2018 (arXiv:1810.04805). The whole sequence is the first segment."""

    unrotated: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.positions = nn.Embedding(c.max_length, c.dim)
        self.segments = nn.Embedding(c.segments, c.dim)
        self.embedding_norm = LayerNorm(c.dim, c.norm_eps)
        self.blocks = nn.ModuleList(PostNormBlock(c, layer) for layer in range(c.layers))
        self.transform = nn.Linear(c.dim, c.dim)
        self.norm = LayerNorm(c.dim, c.norm_eps)
        self.head = None if c.tied else nn.Linear(c.dim, c.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size))
        self.register_buffer("unrotated", torch.empty(c.max_length, 2, 0, device="cpu"), persistent=False)

    def forward_cost(self) -> ForwardCost:
        """As ``Backbone``, plus the transform before the output projection."""
        cost = super().forward_cost()
        return replace(cost, prediction=cost.prediction + 2 * matrix_entries(self.transform))

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        context = attention_context(request, self.unrotated, store, restart=False)
        x = self.embed(request) + self.positions(upload(rotary_positions(request, restart=False), self.device))
        x = gather_targets(self.run(self.embedding_norm(x + self.segments.weight[0]), context), request, 0)
        x = self.norm(activate(self.transform(x), self.config.activation))
        return x

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] -> logits [n, V]."""
        return self.onto_vocabulary(states, self.bias)
