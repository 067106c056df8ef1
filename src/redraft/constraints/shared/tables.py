"""Tables that constraints keep between forward passes, within a number of bytes for the whole process."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Hashable
from functools import cache
from itertools import count
from typing import Any

_CAPACITY = 256 << 20  # bytes


class Tables:
    """What was used last. A table belongs to an object, and is forgotten with it.

    A table that is not found is computed again, so the capacity never changes a result.

    Args:
        capacity: bytes of all tables.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self.capacity, self.size = capacity, 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, Hashable], tuple[Any, int]] = OrderedDict()
        self._numbers: weakref.WeakKeyDictionary[object, int] = weakref.WeakKeyDictionary()
        self._next, self._gone = count(), deque[int]()  # owners that no longer exist: found by the garbage collector

    def find(self, owner: object, name: Hashable) -> Any:
        """The table of this name; None if it is not kept."""
        with self._lock:
            key = self._number(owner), name
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key][0]

    def keep(self, owner: object, name: Hashable, table: Any, nbytes: int) -> None:
        """Keep a table, in place of an earlier one of this name. Those that were used longest ago are forgotten."""
        with self._lock:
            self._forget_gone()
            key = self._number(owner), name
            self.size -= self._kept.pop(key, (None, 0))[1]
            if nbytes > self.capacity:
                return
            self._kept[key] = table, nbytes
            self.size += nbytes
            while self.size > self.capacity:
                self.size -= self._kept.popitem(last=False)[1][1]

    def _number(self, owner: object) -> int:
        """The number of an owner. Unlike its ``id``, it is never given to another one."""
        number = self._numbers.get(owner)
        if number is None:
            number = self._numbers[owner] = next(self._next)
            weakref.finalize(owner, self._gone.append, number)
        return number

    def _forget_gone(self) -> None:
        gone = {self._gone.popleft() for _ in range(len(self._gone))}
        for key in [key for key in self._kept if key[0] in gone] if gone else []:
            self.size -= self._kept.pop(key)[1]


@cache
def tables() -> Tables:
    """The tables of this process."""
    return Tables()
