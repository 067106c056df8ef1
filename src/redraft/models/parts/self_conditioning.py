"""Self-conditioning of token networks: the expected embedding of the previous prediction as an extra input."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.runtime import upload
from redraft.types import SelfConditioning


class SelfConditioningProjection(nn.Module):
    """W sum_k p_k e_k over the most likely tokens k of a position, with e the network's embedding.

    The remaining probability counts as zero, so that the length of the sum shows how confident the previous prediction
    was. W starts at zero, so adding this layer to a trained network does not change its output. See Chen et al. 2022
    (arXiv:2208.04202) for concatenating the previous prediction to the input, Strudel et al. 2022 (arXiv:2211.04236)
    for embeddings, and Hersche et al. 2025 (arXiv:2510.17206) for the most likely tokens of a masked model.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, positions: Tensor, previous: SelfConditioning, embedding: Tensor) -> Tensor:
        """The input [R, Q, D] to add at ``positions`` [R, Q]; ``embedding`` [V, D]."""
        row, at = torch.arange(len(positions), device=positions.device)[:, None], positions.clamp(min=0)
        token, weight = previous.token[row, at], previous.weight[row, at]
        mean = F.embedding_bag(
            upload(token.flatten(0, 1), embedding.device),
            embedding,
            per_sample_weights=upload(weight.flatten(0, 1), embedding.device).to(embedding.dtype),
            mode="sum",
        )
        return F.linear(mean.to(self.weight.dtype), self.weight).view(*positions.shape, -1)
