"""Who is next: a bounded queue in which clients take turns."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Full(Exception):
    """There is no room in the queue."""


class FairQueue(Generic[T]):
    """First come, first served within a client; between clients, turn by turn.

    A client that sends a thousand requests at once delays its own, not everybody's. Not safe for threads by itself.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._lines: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for line in self._lines.values() for item in line)

    def put(self, client: Hashable, items: list[T]) -> None:
        """Add all of them or none.

        Raises:
            Full: there is no room for them all.
        """
        if self._count + len(items) > self.room:
            raise Full
        self._lines.setdefault(client, deque()).extend(items)
        self._count += len(items)

    def head(self) -> T | None:
        """Whose turn it is."""
        return next(iter(self._lines.values()))[0] if self._lines else None

    def take(self) -> T:
        """Remove the head; its client goes to the end of the order."""
        client, line = self._lines.popitem(last=False)
        item = line.popleft()
        self._count -= 1
        if line:
            self._lines[client] = line
        return item

    def discard(self, gone: Callable[[T], bool]) -> list[T]:
        """Remove all that ``gone`` holds of, and return them."""
        out = []
        for client, line in list(self._lines.items()):
            out += [item for item in line if gone(item)]
            kept = deque(item for item in line if not gone(item))
            if kept:
                self._lines[client] = kept
            else:
                del self._lines[client]
        self._count -= len(out)
        return out
