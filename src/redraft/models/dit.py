"""The diffusion transformer of MDLM, SEDD and BD3-LM: adaptive layer norm by the noise level in every block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from redraft.errors import UserError
from redraft.models.parts.attention import Attention, attention_context
from redraft.models.parts.backbone import EVERY, Backbone, gather_targets
from redraft.models.parts.block import Block
from redraft.models.parts.config import NetworkConfig
from redraft.models.parts.mlp import Mlp
from redraft.models.parts.norms import LayerNorm
from redraft.models.parts.positions import rotary_table
from redraft.models.parts.store import KeyValueView
from redraft.models.parts.time import Modulation, TimeEmbedding
from redraft.runtime import upload
from redraft.types import Forward


@dataclass(frozen=True)
class Config(NetworkConfig):
    """Shape of a ``Dit``.

    ``noise`` defines the total noise sigma(t) = -log alpha(t) that the network is conditioned on: that of the
    ``linear`` schedule (alpha = 1 - (1 - epsilon) t), of the ``geometric`` schedule (sigma_min^(1 - t) sigma_max^t), or
    ``none``: 0 at all times.
    """

    vocab_size: int
    dim: int = 768
    condition_dim: int = 128
    layers: int = 12
    heads: int = 12
    max_length: int = 1024
    noise: Literal["none", "linear", "geometric"] = "none"
    epsilon: float = 1e-3
    sigma_min: float = 1e-4
    sigma_max: float = 20.0
    score: Literal["none", "absorbing", "uniform"] = "none"  # outputs are scores for this noise (``Dit.scores``)
    scale_by_sigma: bool = False  # scores were trained relative to 1 / ((e^sigma - 1) (V - 1))

    shift = 0
    tied = False

    def __post_init__(self) -> None:
        if self.dim % self.heads or (self.dim // self.heads) % 2:
            raise UserError(
                f"model: dim = {self.dim} can't be split into {self.heads} heads of even width.", "Change dim or heads."
            )

    @property
    def timed(self) -> bool:
        return self.noise != "none"

    @property
    def key_heads(self) -> int:
        return self.heads

    @property
    def hidden(self) -> int:
        return 4 * self.dim


class Dit(Backbone):
    """DiT (Peebles & Xie 2022, arXiv:2212.09748) for text, as in SEDD (Lou et al. 2024, arXiv:2310.16834)."""

    rotary: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = nn.Embedding(c.vocab_size, c.dim)
        self.time = TimeEmbedding(c.condition_dim, scale=1.0)
        self.blocks = nn.ModuleList(
            Block(
                LayerNorm(c.dim, bias=False),
                Attention(c.dim, c.heads, c.heads, False, 0.0, layer),
                LayerNorm(c.dim, bias=False),
                Mlp(c.dim, c.hidden, "gelu_tanh"),
                Modulation(c.dim, 6, c.condition_dim),
            )
            for layer in range(c.layers)
        )
        self.norm = LayerNorm(c.dim, bias=False)
        self.final_modulation = Modulation(c.dim, 2, c.condition_dim)
        self.head = nn.Linear(c.dim, c.vocab_size)
        table = rotary_table(c.max_length, c.dim // c.heads, 10_000.0)
        self.register_buffer("rotary", table, persistent=False)

    def states(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        """The last hidden states [N, D] of the target positions."""
        condition = self.time(self.sigma(request))
        x = self.run(self.embed(request), attention_context(request, self.rotary, store, restart=False), condition)
        row = upload((request.targets >= 0).nonzero()[:, 0], self.device)
        shift, scale = (part[row, 0] for part in self.final_modulation(condition))
        return torch.addcmul(shift, self.norm(gather_targets(x, request, 0)), 1 + scale)

    def project(self, states: Tensor, request: Forward, part: slice = EVERY) -> Tensor:
        """Hidden states [n, D] of a ``part`` of the target positions -> logits [n, V], or scores."""
        logits = self.onto_vocabulary(states)
        if self.config.score == "none":
            return logits
        row = upload((request.targets >= 0).nonzero()[part, 0], self.device)
        own = upload(gather_targets(request.tokens[..., None], request, 0)[part], logits.device)
        return self.scores(logits, own, self.sigma(request)[row])

    def sigma(self, request: Forward) -> Tensor:
        """The noise level sigma(t) [R] that the network is conditioned on.

        Raises:
            ValueError: the network needs a time and the request has none.
        """
        c = self.config
        if not c.timed:
            return torch.zeros(len(request.tokens), device=self.device)
        if request.time is None:
            raise ValueError("This network is conditioned on time, but the request has no time.")
        t = upload(request.time, self.device).float()
        if c.noise == "linear":
            return -torch.log1p(-(1 - c.epsilon) * t)
        return c.sigma_min ** (1 - t) * c.sigma_max**t

    def scores(self, logits: Tensor, own: Tensor, sigma: Tensor) -> Tensor:
        """Convert SEDD's outputs to the parameterisation of ``objectives.score``: [N, V] -> [N, V].

        ``own`` [N, 1] is the token and ``sigma`` [N] the noise level of each position.

        Absorbing: f with scores exp(f) / ((e^sigma - 1) (V - 1)). Uniform: log-scores, with 0 for the current token.
        """
        size = (torch.expm1(sigma).log() + math.log(logits.shape[-1] - 1))[:, None].to(logits.dtype)
        if self.config.score == "absorbing":
            return logits if self.config.scale_by_sigma else logits + size
        return (logits - size if self.config.scale_by_sigma else logits).scatter(1, own, 0.0)
