"""The base class of networks for continuous diffusion, whose rows hold tokens and noisy vectors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models.parts.attention import Attention, attention_context
from redraft.models.parts.backbone import Backbone, gather_targets
from redraft.models.parts.block import Block
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import RMSNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.store import KeyValueView
from redraft.models.parts.time import TimeEmbedding
from redraft.runtime import upload
from redraft.types import Forward, VectorQuery


def plain_block(c: Any, dim: int, heads: int, hidden: int, layer: int, key_heads: int = 0) -> Block:
    """A block of width ``dim``; its norms follow the configuration ``c``."""
    attention = Attention(dim, heads, key_heads or heads, c.qk_norm, c.norm_eps, layer)
    return Block(RMSNorm(dim, c.norm_eps), attention, RMSNorm(dim, c.norm_eps), SwiGLU(dim, hidden))


class Denoiser(Backbone):
    """A transformer whose positions hold either a token or a noisy vector.

    The input at a vector is the sum of a linear map of it, a linear map of the previous prediction (self-conditioning,
    Chen et al. 2022, arXiv:2208.04202) and the embedded noise level. The input at a token does not depend on the noise
    level, so an isolated prompt is computed once for all forward passes.
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
        """As ``Transformer``: normal(0, 0.02); outputs of residual branches are scaled by 1/sqrt(2 layers)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.answer, std=0.02)
        for block in self.blocks:
            for matrix in (block.attention.out.weight, block.mlp.down.weight):  # type: ignore[union-attr]
                nn.init.normal_(matrix, std=0.02 / (2 * self.config.layers) ** 0.5)  # type: ignore[arg-type]
        for linear in (self.read, self.again):  # vectors have variance 1, embeddings 0.0004
            nn.init.normal_(linear.weight, std=0.02 / self.config.width**0.5)

    def embed(self, request: Forward) -> Tensor:
        """Inputs [R, Q, D] of the blocks, from tokens and vectors."""
        x = self.widened(F.embedding(upload(request.tokens, self.device), self.embedding.weight))
        query = request.find(VectorQuery)
        if query is not None and query.vectors is not None and query.noisy is not None:
            vector = self.read(upload(query.vectors, self.device).to(x))
            if query.previous is not None:
                vector = vector + self.again(upload(query.previous, self.device).to(x))
            if request.time is not None:
                vector = vector + self.time(upload(request.time, self.device))[:, None]
            x = torch.where(upload(query.noisy, self.device)[..., None], vector, x)
        if request.prompt is not None:
            x = x + upload(request.positions >= request.prompt[:, None], self.device)[..., None] * self.answer
        return x

    def projects(self, request: Forward) -> bool:
        """No: some requests are answered with vectors."""
        return False

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """Normalised hidden states [N, D] of the target positions."""
        context = attention_context(request, self.rotary, store, True)
        return self.norm(gather_targets(self.run(self.embed(request), context), request, self.config.shift))
