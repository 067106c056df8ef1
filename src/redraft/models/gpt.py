"""The GPT-2 network: LayerNorm, learned positions, biases, GELU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, place, see
from redraft.models.parts.backbone import Backbone, pick
from redraft.models.parts.block import Block
from redraft.models.parts.mlp import Activation, Mlp
from redraft.models.parts.store import KeyValueStore
from redraft.types import Forward


@dataclass(frozen=True)
class Config:
    """Shape of a ``Gpt``. ``mlp_dim`` of 0 means 4 dim."""

    vocab_size: int
    dim: int = 768
    layers: int = 12
    heads: int = 12
    mlp_dim: int = 0
    max_length: int = 1024
    norm_eps: float = 1e-5
    activation: Activation = "gelu_tanh"
    qkv_bias: bool = True
    tied: bool = True
    shift: int = 1

    timed = False
    gated = False  # two matrices in an MLP

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"model: dim {self.dim} does not split into {self.heads} heads.")

    @property
    def key_heads(self) -> int:
        return self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim or 4 * self.dim


class Gpt(Backbone):
    """Pre-norm transformer of Radford et al. 2019."""

    unrotated: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.positions = nn.Embedding(c.max_length, c.dim)
        self.blocks = nn.ModuleList(
            Block(
                nn.LayerNorm(c.dim, c.norm_eps),
                Attention(c.dim, c.heads, c.heads, False, 0.0, layer, qkv_bias=c.qkv_bias, out_bias=True),
                nn.LayerNorm(c.dim, c.norm_eps),
                Mlp(c.dim, c.hidden, c.activation),
            )
            for layer in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.dim, c.norm_eps)
        self.head = None if c.tied else nn.Linear(c.dim, c.vocab_size, bias=False)
        self.register_buffer("unrotated", torch.empty(c.max_length, 2, 0, device="cpu"), persistent=False)

    def forward(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Flat logits [N, V] in the order of ``ask.want >= 0``."""
        sight = see(ask, self.unrotated, store, restart=False)
        x = self.embed(ask) + self.positions(place(ask, restart=False).to(self.device))
        x = self.norm(pick(self.run(x, sight), ask, self.config.shift))
        return F.linear(x, self.embedding.weight) if self.head is None else self.head(x)
