"""A small classifier of partially masked texts: the sum of a weight per token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_EPOCHS, _BATCH, _RATE, _DECAY = 8, 64, 0.05, 1e-3


@dataclass(frozen=True)
class BagOfTokens:
    """log p(y | x) = log softmax_y (bias_y + sum of weight[x_j, y] over the visible tokens x_j), Y labels.

    Masked positions do not count. In training a random share of each text is hidden, as in generation.
    """

    weight: Tensor  # [V, Y]
    bias: Tensor  # [Y]

    @classmethod
    def fit(cls, texts: Sequence[Sequence[int]], labels: Sequence[int], vocab_size: int, seed: int = 0) -> BagOfTokens:
        """Logistic regression by Adam over ``_EPOCHS`` passes (seconds for ten thousand texts).

        Args:
            texts: token ids. labels: 0 .. Y - 1.
        """
        generator = torch.Generator().manual_seed(seed)
        weight = torch.zeros(vocab_size, max(labels) + 1, requires_grad=True)
        bias = torch.zeros(max(labels) + 1, requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=_RATE, weight_decay=_DECAY)
        target = torch.tensor(labels)
        with torch.inference_mode(False), torch.enable_grad():
            for _ in range(_EPOCHS):
                for rows in torch.randperm(len(texts), generator=generator).split(_BATCH):
                    flat = torch.tensor([token for row in rows.tolist() for token in texts[row]], dtype=torch.int64)
                    size = torch.tensor([len(texts[row]) for row in rows.tolist()])
                    share = torch.rand(len(rows), generator=generator).repeat_interleave(size)
                    seen = torch.rand(len(flat), generator=generator) < share
                    scores = F.embedding_bag(
                        flat, weight, size.cumsum(0) - size, mode="sum", per_sample_weights=seen.float()
                    )
                    optimizer.zero_grad()
                    F.cross_entropy(scores + bias, target[rows]).backward()
                    optimizer.step()
        return cls(weight.detach(), bias.detach())

    def scores(self, ids: Tensor, seen: Tensor) -> Tensor:
        """Logits of the labels [R, Y] from the ids [R, Q] at the positions in ``seen`` [R, Q] bool."""
        return self.bias + (self.weight[ids] * seen[..., None]).sum(1)

    def exact(self, scores: Tensor, label: int) -> Tensor:
        """log p(label | x and token v) for every v: [N, Y] -> [N, V]. One matrix product sums the exponentials."""
        top, peak = scores.amax(1, keepdim=True), self.weight.amax()
        total = (scores - top).exp() @ (self.weight - peak).exp().T
        return scores[:, label, None] + self.weight[:, label] - (total.clamp(min=1e-30).log() + top + peak)

    def first_order(self, scores: Tensor, label: int) -> Tensor:
        """First-order approximation of ``exact``: log p(label | x) plus its derivative [N, V]."""
        p = scores.softmax(1)
        return scores.log_softmax(1)[:, label, None] + self.weight[:, label] - p @ self.weight.T
