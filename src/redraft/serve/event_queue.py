"""Events of one request, passed from the engine's thread to the event loop in order."""

from __future__ import annotations

import asyncio

from redraft.serve.jobs import Event, Progress

_MAX_FRAMES = 64  # unread pictures of the canvas at which a slow client gets no more of them


class EventQueue:
    """The unread events of one request. Created on the event loop that reads it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._frames_put, self._frames_read = 0, 0  # each is written by one thread only

    def put(self, event: Event) -> None:
        """Add an event, from any thread."""
        if isinstance(event, Progress) and event.frame is not None:
            self._frames_put += 1
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the event loop has ended
            return

    def has_room_for_frame(self) -> bool:
        """Whether to add another picture of the canvas. Text is never dropped; pictures are, if the client is slow."""
        return self._frames_put - self._frames_read < _MAX_FRAMES

    async def get(self) -> Event:
        """The next event."""
        event = await self._events.get()
        if isinstance(event, Progress) and event.frame is not None:
            self._frames_read += 1
        return event
