"""Running a server: a process that listens, drains on SIGTERM, and ends."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from redraft.errors import UserError
from redraft.serve.app import create_app
from redraft.serve.settings import Settings


class _Server(uvicorn.Server):
    """Says on /healthz that it is shutting down from the moment it is told to."""

    draining: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.draining()
        super().handle_exit(sig, frame)


def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Listen until SIGTERM or Ctrl-C; what is under way then is finished first.

    Args:
        ready: told the address, once it can be reached.
    Raises:
        UserError: a model that is not there, or an address that can't be had.
    """
    listener = listen(settings)
    host, port = listener.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    try:
        app = create_app(settings, lambda: ready(address))
    except UserError:
        listener.close()
        raise
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.patience) + 2,
        timeout_keep_alive=30,
        h11_max_incomplete_event_size=64 << 10,
    )
    server = _Server(config)

    def draining() -> None:
        app.state.service.draining = True

    server.draining = draining
    try:
        server.run([listener])
    finally:
        listener.close()


def listen(settings: Settings) -> socket.socket:
    """The socket of a server; port 0 is any that is free.

    Raises:
        UserError: the address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # Named as TCP, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a killed server's port is free at once
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        what = f"can't listen on {settings.host}:{settings.port}: {error.strerror or error}."
        raise UserError(what, "Choose another --port, or end what listens there.") from None
    listener.listen(1024)
    return listener
