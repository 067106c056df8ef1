"""Seats in the key-value store: who sits where, and which seat still remembers the beginning of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from redraft.models.parts.store import KeyValueStore


class Seats:
    """Hands out seats. A seat that was given back keeps its keys and values until it is taken again.

    A request that begins like what a free seat remembers gets that seat, and its cache policy finds there what need not
    be computed again. What a cell holds depends on the length of an isolated prompt, not on tokens alone: a seat is
    forgotten when that changes. So it is before and after an approximate policy, whose cells are of its own text only.
    """

    def __init__(self, count: int, stores: Mapping[tuple[str, int], KeyValueStore]) -> None:
        self.count, self.stores = count, stores
        self._free = np.ones(count, dtype=bool)
        self._isolated = np.zeros(count, dtype=np.int64)

    @property
    def free(self) -> int:
        return int(self._free.sum())

    def take(self, rows: int, ids: Sequence[int], isolated: int, exact: bool = True) -> list[int]:
        """``rows`` seats for a prompt, the first of them the one that remembers most of it, else the lowest.

        Args:
            isolated: length of the prompt where it does not see the answer, else 0.
            exact: whether what the request will leave there, and read, is exact.
        """
        open_ = np.flatnonzero(self._free)
        if len(open_) < rows:
            raise ValueError(f"{rows} seats wanted, {len(open_)} free")
        main = next(iter(self.stores.values()), None)
        if main is not None and rows == 1 and exact:
            known = main.tokens[open_, : len(ids)] == np.asarray(ids)[: main.cells]
            length = np.logical_and.accumulate(known, 1).sum(1) * (self._isolated[open_] == isolated)
            open_ = open_[[int(length.argmax())]]
        chosen = open_[:rows]
        self._free[chosen] = False
        for store in self.stores.values():
            store.tokens[chosen[(self._isolated[chosen] != isolated) | (not exact)]] = -1
        self._isolated[chosen] = isolated if exact else -1
        return [int(seat) for seat in chosen]

    def give(self, seats: Sequence[int]) -> None:
        """Give seats back."""
        self._free[list(seats)] = True
