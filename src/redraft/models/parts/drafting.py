"""What both forms of a drafter share: the parts of a request to draft, and keys and values of the text before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from redraft.models.parts.store import KeyValueStore, KeyValueView
from redraft.types import Forward


@dataclass(frozen=True)
class Part:
    """Some positions of some rows of a request, and the store that they read and write."""

    request: Forward
    view: KeyValueView


def split(
    request: Forward, draft_from: Tensor, store: KeyValueView | None, new_store: Callable[[int, int], KeyValueStore]
) -> tuple[Part | None, Part]:
    """The text of a request that is not in the store yet (None: all of it is), and the block to draft.

    The block begins at the positions ``draft_from`` [R]. Without a store, the parts share one that is thrown away.
    """
    if store is None:
        count, width = len(request.tokens), int(request.positions.max()) + 1
        store = KeyValueView(new_store(count, width), torch.arange(count), torch.zeros(count, dtype=torch.int64))
    real, in_block = request.positions >= 0, request.positions >= draft_from[:, None]
    tokens, positions = _columns(request, in_block)
    block = replace(request, tokens=tokens, positions=positions)
    block_part = Part(block, KeyValueView(store.store, store.slots, draft_from))
    rows = (real & ~in_block).any(1).nonzero()[:, 0]
    if not len(rows):
        return None, block_part
    tokens, positions = _columns(request, real & ~in_block, rows)
    text = Forward(
        tokens=tokens,
        positions=positions,
        targets=torch.full((len(rows), 1), -1),
        attention=request.attention,
        prompt=None if request.prompt is None else request.prompt[rows],
        network=request.network,
    )
    return Part(text, KeyValueView(store.store, store.slots[rows], store.visible_below[rows])), block_part


def _columns(request: Forward, chosen: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Tokens and positions of the ``chosen`` [R, Q] bool columns of ``rows`` (None: of all), without gaps."""
    tokens, positions = request.tokens, request.positions
    if rows is not None:
        tokens, positions, chosen = tokens[rows], positions[rows], chosen[rows]
    count = chosen.sum(1)
    column = torch.sort((~chosen).to(torch.int8), dim=1, stable=True).indices[:, : int(count.max())]
    real = torch.arange(column.shape[1]) < count[:, None]
    return tokens.gather(1, column), torch.where(real, positions.gather(1, column), -1)


class PrefixKeys:
    """Keys and values of a text in place of a key-value store, so that a gradient reaches them in training.

    A block's attention then reads [text ; block], as it does from a store.
    """

    def __init__(self, pairs: Sequence[Tensor], first_layer: int) -> None:
        """``pairs`` of [2, R, Hk, L, Dh], one a layer from ``first_layer`` on."""
        self.pairs, self.first_layer = pairs, first_layer

    @property
    def store(self) -> Self:
        """Itself: it takes the place of a view and of its store."""
        return self

    def put(self, layer: int, window: Any, pair: Tensor) -> tuple[Tensor, Tensor]:
        """The text's keys and values followed by the block's, ``pair`` [2, R, Hk, Q, Dh] -> two [R, Hk, L + Q, Dh]."""
        keys, values = torch.cat([self.pairs[layer - self.first_layer], pair], 3).unbind(0)
        return keys, values
