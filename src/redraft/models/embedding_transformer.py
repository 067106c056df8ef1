"""A transformer that reads noisy token embeddings and predicts the tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models import transformer
from redraft.models.parts.denoiser import Denoiser
from redraft.models.parts.store import KeyValueStore
from redraft.types import Forward


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of an ``EmbeddingTransformer``: that of a transformer, and the width Z of the embeddings that get noise."""

    width: int = 64


class EmbeddingTransformer(Denoiser):
    """Vectors are learned token embeddings e_v of length sqrt(Z), a variance of 1; the prediction is p(token | z).

    Its clean vector is the mean sum_v p_v e_v (CDCD's score interpolation, Dieleman et al. 2022, arXiv:2211.15089).
    Embeddings of a fixed length can't run away from the noise. Given tokens keep an embedding of their own.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.vectors = nn.Embedding(config.vocab_size, config.width)
        self.initialise()
        nn.init.normal_(self.vectors.weight)

    def table(self) -> Tensor:
        """[V, Z]"""
        return F.normalize(self.vectors.weight, dim=-1) * self.config.width**0.5

    def expected(self, log_p: Tensor) -> Tensor:
        """The mean vector [N, Z] of tokens with these log-probabilities [N, V]."""
        return log_p.to(self.vectors.weight).exp() @ self.table()

    def forward(self, ask: Forward, store: KeyValueStore | None = None) -> Tensor:
        if ask.vectors is not None and ask.vectors.kind == "encode":
            row, column = (ask.want >= 0).nonzero(as_tuple=True)
            ids = torch.zeros(len(ask.pos), int(ask.pos.max()) + 2, dtype=torch.int64)
            ids.scatter_(1, torch.where(ask.pos < 0, ids.shape[1] - 1, ask.pos), ask.x)
            return F.embedding(ids[row, ask.want[row, column]].to(self.device), self.table())
        return F.linear(self.states(ask, store), self.embedding.weight)
