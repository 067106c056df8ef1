"""The server process: listens, drains on SIGTERM, and ends."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from redraft.errors import UserError
from redraft.serve.app import create_app
from redraft.serve.config import ServerConfig


class _DrainingServer(uvicorn.Server):
    """Calls ``on_exit`` as soon as the process gets a signal to end, so that /healthz reports it at once."""

    on_exit: Callable[[], None]

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.on_exit()
        super().handle_exit(sig, frame)


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
        app = create_app(config, lambda: on_ready(address))
    except UserError:
        listener.close()
        raise
    server = _DrainingServer(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=int(config.shutdown_timeout) + 2,
            timeout_keep_alive=30,
            h11_max_incomplete_event_size=64 << 10,
        )
    )

    def drain() -> None:
        app.state.service.draining = True

    server.on_exit = drain
    try:
        server.run([listener])
    finally:
        listener.close()


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
    listener.listen(1024)
    return listener
