"""Connections: how many may be open, and how long the head of a request may take."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 128  # connections that the system accepts before the server reads them
_OWN = 64  # file descriptors that the server itself needs
_LOG_INTERVAL = 10.0  # seconds between two lines with the same message
_RETRY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def most_connections(wanted: int) -> int:
    """How many connections may be open, given the number of file descriptors, whose limit is raised if possible."""
    try:
        import resource
    except ImportError:  # not on Windows
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        needed = wanted + BACKLOG + _OWN
        if soft != resource.RLIM_INFINITY and soft < needed:
            soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - BACKLOG - _OWN))


def limited_protocol(most: int, receive_timeout: float) -> type[H11Protocol]:
    """uvicorn's protocol with limits.

    Args:
        most: open connections. receive_timeout: seconds in which the head of a request must arrive.
    """

    class LimitedProtocol(H11Protocol):
        """Closes connections beyond a number, and those whose request does not arrive."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._waiting: asyncio.TimerHandle | None = None
            if len(self.connections) > most:
                transport.write(_RETRY)
                transport.close()
                return
            self._wait()

        def data_received(self, data: bytes) -> None:
            if self._waiting is None and (self.cycle is None or self.cycle.response_complete):
                self._wait()  # the next request of this connection
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_waiting()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.conn.trailing_data[0] and self.cycle.response_complete:  # a part of the next request
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._stop_waiting()
            self._waiting = self.loop.call_later(receive_timeout, self.transport.close)

        def _stop_waiting(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

    return LimitedProtocol


class SeldomTheSame(logging.Filter):
    """Lets a message pass once in a while. So a fault that clients can cause does not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}
        self._dropped: Counter[str] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log a record."""
        key, now = f"{record.name}:{record.msg}"[:200], time.monotonic()
        if now - self._last.get(key, -_LOG_INTERVAL) < _LOG_INTERVAL:
            self._dropped[key] += 1
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[key] = now
        if dropped := self._dropped.pop(key, 0):
            record.msg, record.args = f"{record.getMessage()} ({dropped} more since the last such line)", ()
        return True


def quiet_loop(loop: asyncio.AbstractEventLoop, log: logging.Logger) -> None:
    """Log faults of connections, such as a lack of file descriptors, in one line each and not too often."""
    limit = SeldomTheSame()

    def handle(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        text = f"{context.get('message')}: {type(error).__name__}: {error}" if error else str(context.get("message"))
        record = log.makeRecord(log.name, logging.ERROR, "", 0, text, (), None)
        if limit.filter(record):
            log.handle(record)

    loop.set_exception_handler(handle)
