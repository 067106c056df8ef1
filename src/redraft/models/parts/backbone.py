"""What every network shares: its blocks, where it lives, its key-value store, and picking what is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from redraft.models.parts.attention import Attention, Sight
from redraft.models.parts.store import KeyValueStore
from redraft.types import Forward


class Backbone(nn.Module):
    """A stack of ``blocks`` between an ``embedding`` and a vocabulary; ``config`` has its shape and its shift.

    ``network(ask)`` returns flat logits [N, V] for the wanted positions only: the vocabulary is projected nowhere else.
    """

    config: Any
    embedding: nn.Embedding
    blocks: nn.ModuleList

    needs_prompt = False  # it is for models of pairs whose prompt is isolated, and no others

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False  # activation checkpointing: trade one more forward for memory

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def every_block(self) -> Iterator[nn.Module]:
        """``blocks``, and those of further stacks where a network has them."""
        return iter(self.blocks)

    def set_dropout(self, rate: float) -> None:
        """Dropout on every residual branch, in training mode only."""
        for block in self.every_block():
            block.dropout = rate  # type: ignore[assignment]

    def store(self, seats: int, cells: int) -> KeyValueStore:
        """A key-value store of this network's shape."""
        attention = self.blocks[0].attention
        assert isinstance(attention, Attention)
        return KeyValueStore(
            len(self.blocks),
            seats,
            cells,
            attention.kv_heads,
            attention.head_dim,
            self.device,
            self.embedding.weight.dtype,
        )

    def embed(self, ask: Forward) -> Tensor:
        """Vectors of the tokens of a request, of both streams if there are two, [R, Q, D]."""
        return F.embedding(ask.streams[0].to(self.device), self.embedding.weight)

    def run(
        self, x: Tensor, sight: Sight, condition: Tensor | None = None, blocks: nn.ModuleList | None = None
    ) -> Tensor:
        """[R, Q, D] through ``blocks``; None: the network's own."""
        for block in self.blocks if blocks is None else blocks:
            if self.recompute and self.training:
                x = checkpoint(block, x, sight, condition, use_reentrant=False)
            else:
                x = block(x, sight, condition)
        return x


def pick(x: Tensor, ask: Forward, shift: int) -> Tensor:
    """Hidden states [R, Q, D] -> [N, D], those from which the wanted positions are predicted."""
    if ask.want.shape == (1, 1) and ask.pos.shape[1] == 1:
        return x[:, 0]
    pos = ask.pos if ask.cell is None else ask.cell
    length = int(pos.max()) + 1
    index = torch.zeros(len(pos), length + 1, dtype=torch.int64, device=pos.device)
    row, query = _locate(index, pos, 0, ask.want, shift if ask.shift is None else ask.shift)
    if ask.clean is not None and ask.clean.want is not None:  # what is in both streams is read from the clean one
        more = _locate(index, ask.clean.pos, ask.pos.shape[1], ask.clean.want, shift)
        row, query = torch.cat([row, more[0]]), torch.cat([query, more[1]])
    return x[row.to(x.device), query.to(x.device)]


def _locate(index: Tensor, pos: Tensor, begin: int, want: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """Enter the columns, from ``begin`` on, of positions ``pos`` [R, K] into ``index`` [R, length + 1]; then rows and
    columns [N] from which the positions ``want`` [R, W] are predicted."""
    length = index.shape[1] - 1
    columns = torch.arange(begin, begin + pos.shape[1], device=pos.device).expand_as(pos)
    index.scatter_(1, torch.where(pos < 0, length, pos), columns)
    row, column = (want >= 0).nonzero(as_tuple=True)
    return row, index[row, (want[row, column] - shift).clamp(0, length)]
