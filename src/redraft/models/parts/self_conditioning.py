"""Self-conditioning of token networks: the expected embedding of the previous prediction as an extra input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redraft.runtime import upload
from redraft.types import Extra, Forward, SelfConditioning
from redraft.types.request import stack


@dataclass(frozen=True)
class ExpectedEmbedding(Extra):
    """The previous prediction p at each position of a sequence as its mean vector, sum_k p_k e_k over all tokens k.

    P: all positions of the sequence, also those that a request does not run. The vectors stay on the device.
    """

    vectors: Tensor  # [R, P, D]; 0 where nothing was predicted

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(stack([each.vectors for each in parts], 0))


def previous_mean(request: Forward, embedding: Tensor) -> Tensor | None:
    """sum_k p_k e_k of the previous prediction at each position of a request [R, Q, D]; None: it has no prediction.

    Of a ``SelfConditioning``, k are the likeliest tokens, and the remaining probability counts as zero, so that the
    length of the sum shows how confident the prediction was. Of an ``ExpectedEmbedding``, k are all tokens.

    Args:
        embedding: [V, D].
    """
    row = torch.arange(len(request.positions), device=request.positions.device)[:, None]
    at, where = request.positions.clamp(min=0), embedding.device
    whole = request.find(ExpectedEmbedding)
    if whole is not None:
        mean = whole.vectors.to(where)
        return mean[upload(row, where), upload(at, where)]
    likeliest = request.find(SelfConditioning)
    if likeliest is None:
        return None
    mean = F.embedding_bag(
        upload(likeliest.token[row, at].flatten(0, 1), where),
        embedding,
        per_sample_weights=upload(likeliest.weight[row, at].flatten(0, 1), where).to(embedding.dtype),
        mode="sum",
    )
    return mean.view(*at.shape, -1)


class SelfConditioningProjection(nn.Module):
    """W sum_k p_k e_k, with e the network's embedding, added to the input of the blocks.

    W starts at zero, so adding this layer to a trained network does not change its output. See Chen et al. 2022
    (arXiv:2208.04202) for concatenating the previous prediction to the input, Strudel et al. 2022 (arXiv:2211.04236)
    for embeddings, and Hersche et al. 2025 (arXiv:2510.17206) for the most likely tokens of a masked model.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, mean: Tensor) -> Tensor:
        """The input to add [R, Q, D], from the mean vector [R, Q, D] of each position (``previous_mean``)."""
        return F.linear(mean.to(self.weight.dtype), self.weight)
