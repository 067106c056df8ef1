"""The ModernBERT encoder with its language-modelling head: rotary positions, GeGLU, local attention in most layers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, attention_context
from redraft.models.parts.backbone import EVERY, Backbone, gather_targets
from redraft.models.parts.block import Block
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.flops import ForwardCost, matrix_entries
from redraft.models.parts.mlp import Activation, GatedMlp, activate
from redraft.models.parts.norms import LayerNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.store import KeyValueView
from redraft.types import Forward


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Shape of a ``ModernBert``. Layers in ``distant`` have full attention, others up to ``window`` / 2 positions."""

    vocab_size: int
    dim: int = 768
    layers: int = 22
    heads: int = 12
    mlp_dim: int = 1152
    max_length: int = 8192
    distant: tuple[int, ...] = ()
    window: int = 128
    distant_theta: float = 160_000.0
    near_theta: float = 10_000.0
    norm_eps: float = 1e-5
    activation: Activation = "gelu"
    head_activation: Activation = "gelu"
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    transform_bias: bool = False
    vocabulary_bias: bool = True
    tied: bool = True

    shift = 0
    timed = False

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model: dim = {self.dim} can't be split into {self.heads} heads of even width.", "Change dim or heads."
            )

    @property
    def key_heads(self) -> int:
        return self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim


class ModernBert(Backbone):
    """Warner et al. 2024 (arXiv:2412.13663)."""

    distant: Tensor
    near: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.embedding_norm = LayerNorm(c.dim, c.norm_eps, bias=c.norm_bias)
        self.blocks = nn.ModuleList(self._block(layer) for layer in range(c.layers))
        self.final_norm = LayerNorm(c.dim, c.norm_eps, bias=c.norm_bias)
        self.transform = nn.Linear(c.dim, c.dim, c.transform_bias)
        self.norm = LayerNorm(c.dim, c.norm_eps, bias=c.norm_bias)
        self.head = None if c.tied else nn.Linear(c.dim, c.vocab_size, bias=False)
        self.bias = nn.Parameter(torch.zeros(c.vocab_size)) if c.vocabulary_bias else None
        for name, theta in (("distant", c.distant_theta), ("near", c.near_theta)):
            self.register_buffer(name, rotary_table(c.max_length, c.dim // c.heads, theta), persistent=False)

    def _block(self, layer: int) -> Block:
        c, bias, near = self.config, self.config.attention_bias, layer not in self.config.distant
        return Block(
            LayerNorm(c.dim, c.norm_eps, bias=c.norm_bias) if layer else nn.Identity(),  # after embedding_norm
            Attention(c.dim, c.heads, c.heads, False, 0.0, layer, qkv_bias=bias, out_bias=bias, local=near),
            LayerNorm(c.dim, c.norm_eps, bias=c.norm_bias),
            GatedMlp(c.dim, c.hidden, c.activation, c.mlp_bias),
        )

    def forward_cost(self) -> ForwardCost:
        """As ``Backbone``, plus the transform before the output projection."""
        cost = super().forward_cost()
        return replace(cost, prediction=cost.prediction + 2 * matrix_entries(self.transform))

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        context = attention_context(request, self.distant, store, False, self.config.window // 2, self.near)
        x = self.run(self.embedding_norm(self.embed(request)), context)
        x = self.transform(self.final_norm(gather_targets(x, request, 0)))
        x = self.norm(activate(x, self.config.head_activation))
        return x

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] -> logits [n, V]."""
        return self.onto_vocabulary(states, self.bias)
