"""The request queue: bounded, first come first served per client, round robin between clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueFull(Exception):
    """The queue has no room for these items."""


class FairQueue(Generic[T]):
    """First come, first served for the items of one client; round robin between clients.

    A client that queues a thousand requests at once delays its own requests, not those of others. Not thread-safe.

    Args:
        capacity: items in the queue.
        share: of the queue that one client may fill, so that there is room for others; at least one item.
    """

    def __init__(self, capacity: int, share: float = 1.0) -> None:
        self.capacity = capacity
        self.most = max(1, int(capacity * share))  # items of one client
        self._clients: OrderedDict[Hashable, deque[T]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return (item for items in self._clients.values() for item in items)

    def put(self, client: Hashable, items: list[T]) -> None:
        """Add all of the items or none.

        Raises:
            QueueFull: there is no room for all of them, or the client has its share of the queue.
        """
        if self._count + len(items) > self.capacity or len(self._clients.get(client, ())) + len(items) > self.most:
            raise QueueFull
        self._clients.setdefault(client, deque()).extend(items)
        self._count += len(items)

    def head(self) -> T | None:
        """The next item, which stays in the queue."""
        return next(iter(self._clients.values()))[0] if self._clients else None

    def take(self) -> T:
        """Remove and return the next item; its client moves to the end of the order."""
        client, items = self._clients.popitem(last=False)
        item = items.popleft()
        self._count -= 1
        if items:
            self._clients[client] = items
        return item

    def discard(self, condition: Callable[[T], bool]) -> list[T]:
        """Remove and return all items for which ``condition`` holds."""
        removed = []
        for client, items in list(self._clients.items()):
            removed += [item for item in items if condition(item)]
            kept = deque(item for item in items if not condition(item))
            if kept:
                self._clients[client] = kept
            else:
                del self._clients[client]
        self._count -= len(removed)
        return removed


class FairSlots:
    """A number of slots for work, for which clients wait in turns. Used on the event loop only."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(1 << 30)

    @contextlib.asynccontextmanager
    async def of(self, client: Hashable) -> AsyncIterator[None]:
        """Hold a slot, as soon as it is the client's turn."""
        if self._free:
            self._free -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._queue.put(client, [turn])
            try:
                await turn
            except BaseException:
                if turn.done() and not turn.cancelled():
                    self._release()  # the slot was given at the same time
                else:
                    self._queue.discard(lambda other: other is turn)
                raise
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        while self._queue.head() is not None:
            turn = self._queue.take()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
