"""The server process: listens, drains on SIGTERM, and ends in time."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from redraft.errors import UserError
from redraft.serve.app import create_app
from redraft.serve.config import ServerConfig
from redraft.serve.connections import BACKLOG, SeldomTheSame, limited_protocol, most_connections, quiet_loop
from redraft.serve.exchange import Service
from redraft.serve.telemetry import logger

_SHORTEST = 1.0  # seconds of a shutdown without patience, in which answers are sent
_ENDED_BY_FORCE = 1  # exit code


class DrainingServer(uvicorn.Server):
    """On SIGTERM it refuses new requests with 503 while those under way are finished, and it always ends in time.

    A second signal ends the waiting. Whatever happens, the process ends after ``shutdown_timeout`` seconds.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._until = math.inf  # when unfinished requests are given up, as ``time.monotonic()`` counts
        self.force: threading.Timer | None = None  # of a shutdown: ends the process

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; at the second signal, end."""
        self._captured_signals.append(sig)
        if self.service.draining:
            self._until = 0.0
            return
        self.service.draining = True
        patience = max(self.service.config.shutdown_timeout, _SHORTEST)
        self._until = time.monotonic() + self.service.config.shutdown_timeout - min(2.0, patience / 2)
        self.force = threading.Timer(patience, end_by_force)
        self.force.daemon = True
        self.force.start()
        if not self.started:
            self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: whether to leave the main loop."""
        if self.service.draining and (not self.service.pending or time.monotonic() >= self._until):
            if self.service.pending:
                await self.service.stop()
            self.should_exit = True
        return await super().on_tick(counter) or self.should_exit

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        quiet_loop(asyncio.get_running_loop(), logger())
        await super().startup(sockets)


def serve(config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish the requests that are under way.

    Args:
        on_ready: called with the server's address when it accepts requests.
    Raises:
        UserError: a model does not exist, or the address is not available.
    """
    listener = listen(config)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        draining_server(config, lambda: on_ready(address)).run([listener])
    finally:
        listener.close()


def draining_server(config: ServerConfig, on_ready: Callable[[], None] | None = None) -> DrainingServer:
    """The server, which ``run`` starts.

    Args:
        on_ready: called when the models are loaded.
    Raises:
        UserError: a model does not exist.
    """
    app = create_app(config, on_ready)
    _log_of_uvicorn()
    limits = uvicorn.Config(
        app,
        http=limited_protocol(most_connections(config.connections), config.receive_timeout),
        loop="asyncio",  # the same server whatever other packages are installed
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        timeout_keep_alive=30,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=64 << 10,
    )
    return DrainingServer(limits, app.state.service)


def _log_of_uvicorn() -> None:
    """Write uvicorn's warnings to the server's log, and not too often: a client can cause any number of them."""
    log = logging.getLogger("uvicorn.error")
    log.setLevel(logging.WARNING)
    log.addFilter(SeldomTheSame())
    log.handlers, log.propagate = list(logger().handlers), False


def end_by_force() -> None:
    """End the process although something in it does not end."""
    try:
        logger().error("the shutdown took too long and was ended by force")
        sys.stderr.flush()
    finally:
        os._exit(_ENDED_BY_FORCE)


def listen(config: ServerConfig) -> socket.socket:
    """The listening socket; port 0 takes any free port.

    Raises:
        UserError: the address is in use or does not belong to this machine.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    # With the protocol given, asyncio turns Nagle's algorithm off. Otherwise every answer waits 40 ms for an
    # acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a killed server's port is free at once
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise UserError(
            f"Can't listen on {config.host}:{config.port}: {error.strerror or error}.",
            "Choose another --port, or end the process that uses this one.",
        ) from None
    listener.listen(BACKLOG)
    return listener
