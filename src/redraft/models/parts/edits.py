"""Output layer for edit models: log-rates of insertions, substitutions and deletions at each position."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from redraft.models.parts.packed import linear


class EditRates(nn.Module):
    """Hidden states [N, D] -> log-rates [N, 2V + 1]: of inserting each token before the position, of substituting each
    token for its token, and of deleting it (Edit Flows, Havasi et al. 2025, arXiv:2506.09018).

    A rate is lambda Q(token) in the paper. Here log lambda Q(v) = h' e_v + b without normalisation, where e_v is the
    network's embedding. For substitutions h' is the hidden state h; for insertions it is h plus a map of rank D / 4 of
    h. b starts at -log V - log 3, so that a new network expects one edit per position.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.insert = nn.Sequential(nn.Linear(dim, dim // 4, bias=False), nn.Linear(dim // 4, dim))
        self.rates = nn.Linear(dim, 3)  # insert, substitute, delete

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        log_rate = self.rates(x) - math.log(3)
        insert, substitute, delete = log_rate.split(1, -1)
        log_size = math.log(embedding.shape[0])
        return torch.cat(
            [
                linear(x + self.insert(x), embedding) + (insert - log_size),
                linear(x, embedding) + (substitute - log_size),
                delete,
            ],
            -1,
        )
