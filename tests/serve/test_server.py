"""The listening socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from redraft.errors import UserError
from redraft.serve.config import ServerConfig
from redraft.serve.server import listen


def test_answers_are_sent_without_delay() -> None:
    """Nagle's algorithm would delay the second half of each answer by 40 ms, until the first is acknowledged."""

    async def connect() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen(ServerConfig(("any",), port=0))
        async with await asyncio.start_server(met, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            delayed = await asyncio.wait_for(found, 10)
            writer.close()
        return delayed

    assert asyncio.run(connect())


def test_a_port_in_use_is_a_user_error() -> None:
    with listen(ServerConfig(("any",), port=0)) as first:
        first.listen()
        with pytest.raises(UserError, match="Can't listen"):
            listen(ServerConfig(("any",), port=first.getsockname()[1]))
