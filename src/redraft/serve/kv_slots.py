"""Slots of the shared key-value store, with reuse of the slots that already hold a prompt's prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from redraft.models.parts.store import KeyValueStore


class KvSlots:
    """Assigns the rows of the key-value stores to sequences.

    A released slot keeps its keys and values until it is assigned again. A new sequence gets the free slot that holds
    the longest prefix of its prompt, and its cache policy skips the positions that are already computed.

    With a prompt encoder the keys and values of a position also depend on the length of the prompt, so a slot is
    cleared when that length changes. It is also cleared before and after a sequence with an approximate cache policy,
    whose keys and values are valid for that sequence only.
    """

    def __init__(self, count: int, stores: Mapping[tuple[str, int], KeyValueStore]) -> None:
        self.count, self.stores = count, stores
        self._free = np.ones(count, dtype=bool)
        self._encoded = np.zeros(count, dtype=np.int64)  # length of the separately encoded prompt; -1: approximate

    @property
    def free(self) -> int:
        """Number of free slots."""
        return int(self._free.sum())

    def acquire(self, rows: int, ids: Sequence[int], encoded: int, exact: bool = True) -> list[int]:
        """Assign ``rows`` slots to a sequence with the prompt ``ids``: the best match first, else the lowest numbers.

        Args:
            encoded: length of the prompt where a prompt encoder reads it, else 0.
            exact: whether the cache policy is exact.
        Raises:
            ValueError: fewer slots are free.
        """
        candidates = np.flatnonzero(self._free)
        if len(candidates) < rows:
            raise ValueError(f"{rows} slots needed, {len(candidates)} free")
        main = next(iter(self.stores.values()), None)
        if main is not None and rows == 1 and exact:
            same = main.tokens[candidates, : len(ids)] == np.asarray(ids)[: main.positions]
            length = np.logical_and.accumulate(same, 1).sum(1) * (self._encoded[candidates] == encoded)
            candidates = candidates[[int(length.argmax())]]
        chosen = candidates[:rows]
        self._free[chosen] = False
        for store in self.stores.values():
            store.tokens[chosen[(self._encoded[chosen] != encoded) | (not exact)]] = -1
        self._encoded[chosen] = encoded if exact else -1
        return [int(slot) for slot in chosen]

    def release(self, slots: Sequence[int]) -> None:
        """Make slots available again."""
        self._free[list(slots)] = True
