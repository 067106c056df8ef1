"""What networks for continuous diffusion share: tokens and noisy vectors side by side in one row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts.attention import Attention, see
from redraft.models.parts.backbone import Backbone, pick
from redraft.models.parts.block import Block
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.store import KeyValueStore
from redraft.models.parts.time import TimeEmbedding
from redraft.types import Forward


def plain_block(c: Any, dim: int, heads: int, hidden: int, layer: int, key_heads: int = 0) -> Block:
    """A block of a width of its own, with everything else as in the shape ``c``."""
    attention = Attention(dim, heads, key_heads or heads, c.qk_norm, c.norm_eps, layer)
    return Block(RMSNorm(dim, c.norm_eps), attention, RMSNorm(dim, c.norm_eps), SwiGLU(dim, hidden))


class Denoiser(Backbone):
    """A transformer whose positions hold tokens, or noisy vectors.

    A vector enters through a linear map, with a second one for what was predicted before (self-conditioning, Chen et
    al. 2022, arXiv:2208.04202) and the embedded noise level. Tokens aren't told the level, so that an isolated prompt
    is computed once for all passes.
    """

    rotary: Tensor

    def __init__(self, config: Any) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.blocks = nn.ModuleList(
            plain_block(c, c.dim, c.heads, c.hidden, layer, c.key_heads) for layer in range(c.layers)
        )
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.answer = nn.Parameter(torch.zeros(c.dim))
        self.time = TimeEmbedding(c.dim)
        self.read = nn.Linear(c.width, c.dim)
        self.again = nn.Linear(c.width, c.dim, bias=False)
        self.register_buffer("rotary", rotary_table(c.max_length, c.dim // c.heads, c.rope_theta), persistent=False)

    def initialise(self) -> None:
        """As in ``Transformer``: normal(0, 0.02), what writes into the residual stream scaled by 1/sqrt(2 layers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.answer, std=0.02)
        for block in self.blocks:
            for matrix in (block.attention.out.weight, block.mlp.down.weight):  # type: ignore[union-attr]
                nn.init.normal_(matrix, std=0.02 / (2 * self.config.layers) ** 0.5)  # type: ignore[arg-type]
        for reads in (self.read, self.again):  # vectors have a variance of 1, embeddings one of 0.0004
            nn.init.normal_(reads.weight, std=0.02 / self.config.width**0.5)

    def embed(self, ask: Forward) -> Tensor:
        x = F.embedding(ask.x.to(self.device), self.embedding.weight)
        given = ask.vectors
        if given is not None and given.z is not None and given.noisy is not None:
            vector = self.read(given.z.to(x))
            if given.guess is not None:
                vector = vector + self.again(given.guess.to(x))
            if ask.t is not None:
                vector = vector + self.time(ask.t.to(self.device))[:, None]
            x = torch.where(given.noisy.to(self.device)[..., None], vector, x)
        if ask.prompt is not None:
            x = x + (ask.pos >= ask.prompt[:, None]).to(self.device)[..., None] * self.answer
        return x

    def states(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        """Normed hidden states [N, D] of the wanted positions."""
        sight = see(ask, self.rotary, store, True)
        return self.norm(pick(self.run(self.embed(ask), sight), ask, self.config.shift))
