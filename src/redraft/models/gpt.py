"""The GPT-2 network: LayerNorm, learned position embeddings, biases, GELU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, attention_context, rotary_positions
from redraft.models.parts.backbone import EVERY, Backbone, gather_targets
from redraft.models.parts.block import Block
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.mlp import Activation, Mlp
from redraft.models.parts.norms import LayerNorm
from redraft.models.parts.store import KeyValueView
from redraft.runtime import upload
from redraft.types import Forward, StateQuery


@dataclass(frozen=True)
class Config(NetworkConfig):
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

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise UserError(f"model: dim = {self.dim} can't be split into {self.heads} heads.", "Change dim or heads.")

    @property
    def key_heads(self) -> int:
        return self.heads

    @property
    def hidden(self) -> int:
        return self.mlp_dim or 4 * self.dim


class Gpt(Backbone):
    """The pre-norm transformer of Radford et al. 2019."""

    unrotated: Tensor
    answers_states = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.positions = nn.Embedding(c.max_length, c.dim)
        self.blocks = nn.ModuleList(
            Block(
                LayerNorm(c.dim, c.norm_eps),
                Attention(c.dim, c.heads, c.heads, False, 0.0, layer, qkv_bias=c.qkv_bias, out_bias=True),
                LayerNorm(c.dim, c.norm_eps),
                Mlp(c.dim, c.hidden, c.activation),
            )
            for layer in range(c.layers)
        )
        self.norm = LayerNorm(c.dim, c.norm_eps)
        self.head = None if c.tied else nn.Linear(c.dim, c.vocab_size, bias=False)
        self.register_buffer("unrotated", torch.empty(c.max_length, 2, 0, device="cpu"), persistent=False)

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        context = attention_context(request, self.unrotated, store, restart=False)
        seen: list[Tensor] | None = [] if request.find(StateQuery) else None
        x = self.embed(request) + self.positions(upload(rotary_positions(request, restart=False), self.device))
        x = self.norm(gather_targets(self.run(x, context, seen=seen), request, self.config.shift))
        return self.with_states(x, seen, request)

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] -> logits [n, V]."""
        return self.beside_states(states, request, self.onto_vocabulary)
