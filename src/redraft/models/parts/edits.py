"""Log-rates of edits, read off a hidden state: what to insert before it, what to put in its place, whether to go."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class EditRates(nn.Module):
    """Hidden states [N, D] -> log-rates [N, 2V + 1]: of inserting each token before the cell, of putting each token in
    its place, and of deleting it (Edit Flows, Havasi et al. 2025, arXiv:2506.09018).

    A rate is lambda Q(token) in the paper. Here log lambda Q(v) = h' e_v + b, unnormalised, with e_v the network's own
    embedding; substitution reads h as it is, insertion h and a map of rank D / 4 of it. b begins at -log V - log 3, so
    that a new network expects one edit a cell.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.insert = nn.Sequential(nn.Linear(dim, dim // 4, bias=False), nn.Linear(dim // 4, dim))
        self.rates = nn.Linear(dim, 3)  # insert, substitute, delete

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        log_rate = self.rates(x) - math.log(3)
        insert, substitute, delete = log_rate.split(1, -1)
        spread = math.log(embedding.shape[0])
        return torch.cat(
            [
                F.linear(x + self.insert(x), embedding) + (insert - spread),
                F.linear(x, embedding) + (substitute - spread),
                delete,
            ],
            -1,
        )
