"""Trained vectors of a few tokens of a frozen vocabulary, beside the adapters of the blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AddedTokens(nn.Module):
    """The change of the embeddings of some tokens, and of their rows of an output projection of its own.

    A conversion adds tokens whose vectors mean nothing (the mask); an adapter trains the blocks alone. Only these few
    rows are trained with it, not the whole vocabulary (``trainable_token_indices`` of peft). A change starts at zero.

    Attributes:
        ids: [k] the tokens.
        embedding, head: [k, D] the changes; ``head`` is None if the output projection is tied to the embeddings.
    """

    ids: Tensor

    def __init__(self, ids: Sequence[int], embedding: Tensor, head: Tensor | None) -> None:
        super().__init__()
        shape, device = (len(ids), embedding.shape[1]), embedding.device
        self.register_buffer("ids", torch.tensor(ids, device=device), persistent=False)
        self.embedding = nn.Parameter(torch.zeros(shape, device=device))
        self.head = None if head is None else nn.Parameter(torch.zeros(shape, device=device))

    def embedded(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Embeddings [R, Q, D] of ``tokens`` [R, Q] with the changes of these tokens."""
        return x + (tokens[..., None] == self.ids).to(x.dtype) @ self.embedding.to(x.dtype)

    def projected(self, logits: Tensor, states: Tensor) -> Tensor:
        """Logits [n, V] of hidden states [n, D] with the changes of these tokens, in place."""
        change = F.linear(states, self.embedding if self.head is None else self.head)
        return logits.index_add_(1, self.ids, change.to(logits.dtype))

    @torch.no_grad()
    def merge_into(self, embedding: Tensor, head: Tensor | None) -> None:
        """Add the changes to the embeddings [V, D] and, if it is not tied, to the output projection [V, D]."""
        embedding[self.ids] += self.embedding.to(embedding)
        if head is not None and self.head is not None:
            head[self.ids] += self.head.to(head)
