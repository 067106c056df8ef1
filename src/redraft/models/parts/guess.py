"""How a token network is told what it predicted before: the mean embedding of its guess, by a linear map."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.types import Forward


class Guessed(nn.Module):
    """W sum_k p_k e_k over the likeliest tokens of a position (``types.Guess``), e the network's own embedding.

    What is left of the probability counts as zero, so that the length of the sum tells how sure the guess was. W begins
    at zero: a network that is given this part computes what it did before. (Chen et al. 2022, arXiv:2208.04202, put
    the previous prediction beside the input; of embeddings, Strudel et al. 2022, arXiv:2211.04236; of the likeliest
    tokens of a masked model, Hersche et al. 2025, arXiv:2510.17206.)
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, ask: Forward, embedding: Tensor) -> Tensor:
        """What is added at each position of the request, [R, Q, D]."""
        assert ask.guess is not None
        row, at = torch.arange(len(ask.pos), device=ask.pos.device)[:, None], ask.pos.clamp(min=0)
        token, weight = ask.guess.token[row, at], ask.guess.weight[row, at]
        mean = F.embedding_bag(
            token.flatten(0, 1).to(embedding.device),
            embedding,
            per_sample_weights=weight.flatten(0, 1).to(embedding.device, embedding.dtype),
            mode="sum",
        )
        return F.linear(mean, self.weight).view(*ask.pos.shape, -1)
