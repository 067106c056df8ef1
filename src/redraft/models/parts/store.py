"""The key-value store: one slot per canvas row, indexed by position, with a record of each position's token."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.models.parts.masks import LAST, group_mask
from redraft.runtime import upload
from redraft.types import DraftQuery, Forward, Request


@dataclass
class Window:
    """How one request uses the store: where its keys are written, and which stored positions it reads."""

    rows: slice | Tensor  # slots; a slice if they are contiguous (no copy)
    write: slice | tuple[Tensor, Tensor]  # positions, or (slots [R, Q], positions [R, Q]) if rows differ
    extent: int  # positions ``begin`` .. extent are read
    mask: Tensor | None  # [R, 1, Q or 1, extent - begin] bool; None: everything is visible
    begin: int = 0
    drift: DriftQuery | None = None  # positions at which the store measures how far values have moved


@dataclass
class DriftQuery:
    """The positions of a request that show how far values have moved since they were last computed."""

    slot: np.ndarray  # [R]
    same: np.ndarray  # [R, Q] bool: computed before from the same token
    complete: np.ndarray  # [R] bool: the request computes everything that it reads, except for what precedes it


def _zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros [...]. On a CPU, memory is taken when it is first written (numpy's zeros are calloc's, torch's are
    written): every slot has room for the whole context, and most sequences are far shorter."""
    if device.type != "cpu":
        return torch.zeros(shape, device=device, dtype=dtype)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


class KeyValueStore:
    """Keys and values of each layer in one tensor [2, slots, kv_heads, positions, head_dim], allocated once.

    ``tokens`` [slots, positions] (on the host) is the token that each stored position was computed from, -1 for none. A
    cache policy compares it with the canvas to see what is still valid. The last position receives padding and is never
    read.

    After ``watch``, ``moved`` [slots] (on the host) measures how far values have moved since the whole slot was last
    computed: the sum over forward passes of the mean of 1 - cos(new value, old value) over those positions of one layer
    that were computed again from the same token.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        slots: int,
        positions: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """``shapes``: kv_heads and head_dim of each layer."""
        self.pairs = [_zeros((2, slots, heads, positions + 1, dim), device, dtype) for heads, dim in shapes]
        self.tokens = np.full((slots, positions), -1, dtype=np.int64)
        self.positions, self.device = positions, device
        self.moved = np.zeros(slots)
        self.watched = -1  # layer; -1: none

    def watch(self, layer: int) -> None:
        """Start to measure how far the values of a layer move; -1 is the last layer."""
        self.watched = layer % len(self.pairs)

    def place(self, slots: Tensor, positions: Tensor) -> tuple[slice | Tensor, slice | tuple[Tensor, Tensor]]:
        """Indices of ``slots`` [R] and of their ``positions`` [R, Q], as in ``Window``."""
        slot, position = slots.numpy(), positions.numpy()
        rows, width = position.shape
        first = int(position[0, 0])
        adjacent = rows == 1 or bool((np.diff(slot) == 1).all())
        contiguous = rows == 1 or bool((position == position[:1]).all())
        contiguous = contiguous and int(position[0, -1]) - first == width - 1 and first >= 0
        where = slice(int(slot[0]), int(slot[0]) + rows) if adjacent else upload(slots, self.device)
        if contiguous and adjacent:
            return where, slice(first, first + width)
        kept = np.where(position < 0, self.positions, position)
        wide = np.repeat(slot[:, None], width, 1)
        both = upload(torch.from_numpy(np.stack([wide, kept])), self.device)
        return where, (both[0], both[1])

    def put(self, layer: int, window: Window, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values, ``pair`` [2, R, H, Q, Dh], and return those that the request reads (see ``get``)."""
        pairs = self.pairs[layer]
        if layer == self.watched and window.drift is not None:
            self._measure(self._values(layer, window), pair[1].transpose(1, 2), window.drift)
        if isinstance(window.write, slice):
            pairs[:, window.rows, :, window.write] = pair
        else:
            slot, position = window.write
            pairs[:, slot, :, position] = pair.permute(1, 3, 0, 2, 4)  # the axes of two index tensors come first
        return self.get(layer, window)

    def get(self, layer: int, window: Window) -> tuple[Tensor, Tensor]:
        """The keys and the values that a request reads, [R, H, extent - begin, Dh] each."""
        keys, values = self.pairs[layer][:, window.rows, :, window.begin : window.extent].unbind(0)
        return keys, values

    @contextmanager
    def measured(self, window: Window) -> Iterator[None]:
        """Measure, as ``put`` does, values that are written to the watched layer by other means in a ``with`` block."""
        if window.drift is None:
            yield
            return
        before = self._values(self.watched, window).clone()
        yield
        self._measure(before, self._values(self.watched, window), window.drift)

    def _values(self, layer: int, window: Window) -> Tensor:
        """The values [R, Q, H, Dh] at the positions that a request writes."""
        values = self.pairs[layer][1]
        if isinstance(window.write, slice):
            return values[window.rows, :, window.write].transpose(1, 2)
        return values[window.write[0], :, window.write[1]]

    def _measure(self, before: Tensor, after: Tensor, drift: DriftQuery) -> None:
        """Record how far values [R, Q, H, Dh] have moved."""
        if drift.same.any():
            cosine = torch.cosine_similarity(after.flatten(2).float(), before.flatten(2).float(), dim=-1)
            distance = np.where(drift.same, 1 - cosine.cpu().double().numpy(), 0.0)
            self.moved[drift.slot] += distance.sum(1) / np.maximum(1, drift.same.sum(1))
        self.moved[drift.slot[drift.complete]] = 0.0

    def record(self, request: Request) -> None:
        """Record the tokens just written, and invalidate every position after those known to be valid.

        Drafts (``DraftQuery.draft_from``) attended to later positions, so no later pass may reuse them as causal.
        """
        slots, below = request.cache.kv_slot, request.cache.visible_below
        assert slots is not None and below is not None
        slot, positions, tokens = slots.numpy(), request.positions.numpy(), request.tokens.numpy()
        if positions.shape[1] == 1 and positions.min() >= 0:
            self.tokens[slot, positions[:, 0]] = tokens[:, 0]
            beyond = np.maximum(below.numpy(), positions[:, 0] + 1)
        else:
            row, column = np.nonzero(positions >= 0)
            self.tokens[slot[row], positions[row, column]] = tokens[row, column]
            beyond = np.maximum(below.numpy(), positions.max(1) + 1)
        draft = request.find(DraftQuery)
        if draft is not None and draft.draft_from is not None:
            beyond = np.minimum(beyond, draft.draft_from.numpy())
        for each, start in zip(slot.tolist(), beyond.tolist(), strict=True):
            self.tokens[each, start:] = -1

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy slots ``source`` [N] to slots ``target`` [N] (beams that share a parent)."""
        from_, to = upload(torch.stack([source, target]), self.device)
        for pairs in self.pairs:
            pairs[:, to] = pairs[:, from_]
        self.tokens[target.numpy()] = self.tokens[source.numpy()]
        self.moved[target.numpy()] = self.moved[source.numpy()]


@dataclass(frozen=True)
class KeyValueView:
    """The store as one request uses it: the slots of its rows, and which stored positions they may read."""

    store: KeyValueStore
    slots: Tensor  # [R]
    visible_below: Tensor  # [R] stored positions below this one are visible without being run

    def window(self, request: Forward, begin: Tensor | None = None) -> Window:
        """Compute, on the host, what a request writes and reads.

        A stored position is visible to a query if it is below ``visible_below`` or part of the request, its group is
        not after the query's group, and it is not before ``begin`` [R].
        """
        found = self._window(request, begin)
        if self.store.watched >= 0:
            slot, positions = self.slots.numpy(), request.positions.numpy()
            recorded = self.store.tokens[slot[:, None], positions.clip(min=0)]
            same = (recorded == request.tokens.numpy()) & (positions >= 0)
            found.drift = DriftQuery(slot, same, self.visible_below.numpy() <= positions[:, 0])
        return found

    def _window(self, request: Forward, begin: Tensor | None) -> Window:
        positions, below = request.positions.numpy(), self.visible_below.numpy()
        rows, write = self.store.place(self.slots, request.positions)
        extent = max(int(positions.max()) + 1, int(below.max()))
        low = 0 if begin is None else int(begin.min())
        mask: Tensor | None = None
        no_gap = begin is None or bool((begin == low).all())
        if isinstance(write, slice):
            no_gap &= bool((below >= write.start).all()) and extent <= max(write.stop, int(below.min()))
        if not isinstance(write, slice) or not no_gap or not self._one_group(request, extent):
            mask = self._mask(request, extent, low, begin)
        return Window(rows, write, extent, mask, low)

    def _one_group(self, request: Forward, extent: int) -> bool:
        """Every query attends to all positions below ``extent``: a single last query, or all in the last group."""
        if request.positions.shape[1] == 1 and int(request.positions.min()) == extent - 1:
            return True
        first, last = request.positions[:, :1], torch.full_like(request.positions[:, :1], extent - 1)
        return bool((request.group(first) >= request.group(last)).all())

    def _mask(self, request: Forward, extent: int, low: int, begin: Tensor | None) -> Tensor | None:
        """The mask over the stored positions from ``low`` on. A row sees none before its own ``begin`` [R]."""
        positions = request.positions
        stored = torch.arange(extent)[None]
        run = torch.zeros(positions.shape[0], extent + 1, dtype=torch.bool)
        run.scatter_(1, torch.where(positions < 0, extent, positions), True)
        visible = run[:, :extent] | (stored < self.visible_below[:, None])
        if begin is not None:
            visible &= stored >= begin[:, None]
        key = request.group(stored.expand(len(positions), -1)).masked_fill(~visible, LAST)
        query = request.group(positions).masked_fill(positions < 0, -1)
        return group_mask(query, key[:, low:], self.store.device)
