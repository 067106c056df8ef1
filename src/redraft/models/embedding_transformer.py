"""A transformer that reads noisy token embeddings and predicts tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.models import transformer
from redraft.models.parts.denoiser import Denoiser
from redraft.models.parts.packed import linear
from redraft.models.parts.store import KeyValueView
from redraft.runtime import upload
from redraft.types import Forward, VectorQuery


@dataclass(frozen=True)
class Config(transformer.Config):
    """Shape of an ``EmbeddingTransformer``: that of a transformer, and the width Z of the diffused embeddings."""

    width: int = 64

    @property
    def vectors(self) -> tuple[int, int, bool]:
        return self.width, 1, True


class EmbeddingTransformer(Denoiser):
    """Vectors are learned token embeddings e_v of length sqrt(Z), so of variance 1; the prediction is p(token | z).

    The predicted clean vector is the mean sum_v p_v e_v (score interpolation of CDCD, Dieleman et al. 2022,
    arXiv:2211.15089). Because the length is fixed, embeddings can't grow to outweigh the noise. Tokens without noise
    use a separate embedding.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.vectors = nn.Embedding(config.vocab_size, config.width)
        self.initialise()
        nn.init.normal_(self.vectors.weight)

    def table(self) -> Tensor:
        """The embeddings [V, Z] that noise is added to."""
        return F.normalize(self.vectors.weight, dim=-1) * self.config.width**0.5

    def expected(self, log_p: Tensor) -> Tensor:
        """The expected embedding [N, Z] of tokens with log-probabilities [N, V]."""
        return log_p.to(self.vectors.weight).exp() @ self.table()

    def forward(self, request: Forward, store: KeyValueView | None = None) -> Tensor:
        query = request.find(VectorQuery)
        if query is not None and query.kind == "encode":
            row, column = (request.targets >= 0).nonzero(as_tuple=True)
            ids = torch.zeros(len(request.positions), int(request.positions.max()) + 2, dtype=torch.int64)
            ids.scatter_(1, torch.where(request.positions < 0, ids.shape[1] - 1, request.positions), request.tokens)
            return F.embedding(upload(ids[row, request.targets[row, column]], self.device), self.table())
        return linear(self.states(request, store), self.embedding.weight)
