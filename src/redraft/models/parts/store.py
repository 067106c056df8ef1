"""The key-value store: cell index = position, one seat per canvas row, the token of each cell on record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from redraft.types import Forward


@dataclass
class Window:
    """How one request touches the store: where its keys go and which cells it reads."""

    rows: slice | Tensor  # seats, a slice where they are contiguous (no copy)
    write: slice | tuple[Tensor, Tensor]  # cells, or (seats [R, Q], cells [R, Q]) where rows differ
    extent: int  # cells ``begin`` .. extent are read
    mask: Tensor | None  # [R, 1, Q, extent - begin] bool; None: everything is visible
    begin: int = 0
    look: Look | None = None  # where the store watches how values move


@dataclass
class Look:
    """Which of a request's positions tell how far values have moved since they were computed last."""

    seat: np.ndarray  # [R]
    same: np.ndarray  # [R, Q] bool: computed before, from the same token
    whole: np.ndarray  # [R] bool: the request reads nothing that it does not compute, but for what precedes it


class KeyValueStore:
    """Keys and values of every layer, side by side as [2, seats, kv_heads, cells, head_dim], allocated once.

    ``tokens`` [seats, cells] (host) is the token each cell was computed from, -1 for none, so that a cache policy can
    see what still holds. The last cell is a bin for padding and is never read.

    On demand (``watch``) ``moved`` [seats] (host) says how far values have moved since a seat was computed as a whole:
    over the passes since, the sum of the mean of 1 - cos(new value, old value), over those positions of one layer that
    were computed again from the same token.
    """

    def __init__(
        self,
        layers: int,
        seats: int,
        cells: int,
        kv_heads: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (2, seats, kv_heads, cells + 1, head_dim)
        self.pairs = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]
        self.tokens = np.full((seats, cells), -1, dtype=np.int64)
        self.cells, self.device = cells, device
        self.moved = np.zeros(seats)
        self._watched = -1  # layer

    def watch(self, layer: int) -> None:
        """From now on see how the values of this layer move (-1: of the last)."""
        self._watched = layer % len(self.pairs)

    def window(self, ask: Forward, begin: Tensor | None = None) -> Window:
        """Work out, on the host, what a request writes and reads.

        A cell is visible when it lies below the row's ``read`` or belongs to the request itself, its stage does not
        come after the query's, and it does not lie before ``begin`` [R].
        """
        found = self._window(ask, begin)
        if self._watched >= 0:
            assert ask.slot is not None and ask.read is not None
            slot, pos = ask.slot.numpy(), ask.pos.numpy()
            same = (self.tokens[slot[:, None], pos.clip(min=0)] == ask.x.numpy()) & (pos >= 0)
            found.look = Look(slot, same, ask.read.numpy() <= pos[:, 0])
        return found

    def _window(self, ask: Forward, begin: Tensor | None) -> Window:
        assert ask.slot is not None and ask.read is not None
        pos, read = ask.pos.numpy(), ask.read.numpy()
        rows, write = self.place(ask.slot, ask.pos)
        extent = max(int(pos.max()) + 1, int(read.max()))
        mask: Tensor | None = None
        if isinstance(write, slice):
            flush = bool((read >= write.start).all()) and extent <= max(write.stop, int(read.min()))
            mask = None if flush and self._one_stage(ask, extent) else self._mask(ask, extent)
        else:
            mask = self._mask(ask, extent)
        if begin is None:
            return Window(rows, write, extent, mask)
        low = int(begin.min())
        if not bool((begin == low).all()):
            mask = self._mask(ask, extent) if mask is None else mask
            mask = mask & (torch.arange(extent) >= begin[:, None])[:, None, None].to(self.device)
        return Window(rows, write, extent, None if mask is None else mask[..., low:], low)

    def place(self, slot: Tensor, pos: Tensor) -> tuple[slice | Tensor, slice | tuple[Tensor, Tensor]]:
        """Seats of rows ``slot`` [R], and the cells of their positions ``pos`` [R, Q], as ``Window`` has them."""
        seats, cells = slot.numpy(), pos.numpy()
        rows, width = cells.shape
        first = int(cells[0, 0])
        together = rows == 1 or bool((np.diff(seats) == 1).all())
        straight = rows == 1 or bool((cells == cells[:1]).all())
        straight = straight and int(cells[0, -1]) - first == width - 1 and first >= 0
        where = slice(int(seats[0]), int(seats[0]) + rows) if together else slot.to(self.device)
        if straight and together:
            return where, slice(first, first + width)
        cell = np.where(cells < 0, self.cells, cells)
        seat = np.repeat(seats[:, None], width, 1)
        return where, (torch.from_numpy(seat).to(self.device), torch.from_numpy(cell).to(self.device))

    def _one_stage(self, ask: Forward, extent: int) -> bool:
        """Every query sees every cell below ``extent``: a lone last query, or all queries in the last stage."""
        if ask.pos.shape[1] == 1 and int(ask.pos.min()) == extent - 1:
            return True
        first, last = ask.pos[:, :1], torch.full_like(ask.pos[:, :1], extent - 1)
        return bool((ask.stage(first) >= ask.stage(last)).all())

    def _mask(self, ask: Forward, extent: int) -> Tensor:
        assert ask.read is not None
        cells = torch.arange(extent)[None]
        asked = torch.zeros(ask.pos.shape[0], extent + 1, dtype=torch.bool)
        asked.scatter_(1, torch.where(ask.pos < 0, extent, ask.pos), True)
        visible = asked[:, :extent] | (cells < ask.read[:, None])
        stage = ask.stage(cells.expand(len(ask.pos), -1))
        mine = ask.stage(ask.pos).masked_fill(ask.pos < 0, torch.iinfo(torch.int64).max)
        return (visible[:, None] & (stage[:, None] <= mine[:, :, None]))[:, None].to(self.device)

    def put(self, layer: int, window: Window, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys and values, ``pair`` [2, R, H, Q, Dh]; return what the request reads (see ``get``)."""
        pairs = self.pairs[layer]
        if layer == self._watched and window.look is not None:
            self._see(pairs[1], window, pair[1])
        if isinstance(window.write, slice):
            pairs[:, window.rows, :, window.write] = pair
        else:
            seat, cell = window.write
            pairs[:, seat, :, cell] = pair.permute(1, 3, 0, 2, 4)  # the axes of two index tensors come first
        return self.get(layer, window)

    def get(self, layer: int, window: Window) -> tuple[Tensor, Tensor]:
        """The keys and values that a request reads, [R, H, extent - begin, Dh] each."""
        keys, values = self.pairs[layer][:, window.rows, :, window.begin : window.extent].unbind(0)
        return keys, values

    def _see(self, old: Tensor, window: Window, new: Tensor) -> None:
        """Note how far values [R, H, Q, Dh] are from those in store."""
        look = window.look
        assert look is not None
        if look.same.any():
            if isinstance(window.write, slice):
                before = old[window.rows, :, window.write].transpose(1, 2)
            else:
                before = old[window.write[0], :, window.write[1]]
            after = new.transpose(1, 2)
            cosine = torch.cosine_similarity(after.flatten(2).float(), before.flatten(2).float(), dim=-1)
            apart = np.where(look.same, 1 - cosine.double().cpu().numpy(), 0.0)
            self.moved[look.seat] += apart.sum(1) / np.maximum(1, look.same.sum(1))
        self.moved[look.seat[look.whole]] = 0.0

    def record(self, ask: Forward) -> None:
        """Note the tokens just written, and forget every cell beyond what is known to hold.

        What was only drafted (``ask.whole``) saw what comes after it, so that no later pass may take it for causal.
        """
        assert ask.slot is not None and ask.read is not None
        slot, pos, x = ask.slot.numpy(), ask.pos.numpy(), ask.x.numpy()
        if pos.shape[1] == 1 and pos.min() >= 0:
            self.tokens[slot, pos[:, 0]] = x[:, 0]
            beyond = np.maximum(ask.read.numpy(), pos[:, 0] + 1)
        else:
            row, column = np.nonzero(pos >= 0)
            self.tokens[slot[row], pos[row, column]] = x[row, column]
            beyond = np.maximum(ask.read.numpy(), pos.max(1) + 1)
        if ask.whole is not None:
            beyond = np.minimum(beyond, ask.whole.numpy())
        for seat, start in zip(slot.tolist(), beyond.tolist(), strict=True):
            self.tokens[seat, start:] = -1

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Copy whole seats (beams that share a parent)."""
        from_, to = source.to(self.device), target.to(self.device)
        for pairs in self.pairs:
            pairs[:, to] = pairs[:, from_]
        self.tokens[target.numpy()] = self.tokens[source.numpy()]
        self.moved[target.numpy()] = self.moved[source.numpy()]
