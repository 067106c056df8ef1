"""From the engine's thread to the event loop: the events of one request, in order."""

from __future__ import annotations

import asyncio

from redraft.serve.engine import Event, Progress

_PICTURES = 64  # waiting pictures beyond which a slow reader gets no more


class Mailbox:
    """What an engine told one request, waiting to be read. Made on the event loop that reads it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._sent, self._read = 0, 0  # pictures; each counted by one thread only

    def put(self, event: Event) -> None:
        """From any thread."""
        if isinstance(event, Progress) and event.frame is not None:
            self._sent += 1
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop has ended: nobody reads any more
            return

    def room(self) -> bool:
        """Should there be a picture now? Text is never left out, pictures are if their reader is slow."""
        return self._sent - self._read < _PICTURES

    async def get(self) -> Event:
        event = await self._events.get()
        if isinstance(event, Progress) and event.frame is not None:
            self._read += 1
        return event
