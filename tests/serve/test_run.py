"""The listening socket."""

from __future__ import annotations

import asyncio
import socket

import pytest

from redraft.errors import UserError
from redraft.serve.run import listen
from redraft.serve.settings import Settings


def test_answers_are_sent_at_once() -> None:
    """Nagle's algorithm holds back the second half of an answer until the first is acknowledged: 40 ms each."""

    async def connect() -> int:
        found: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def met(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            found.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen(Settings(("any",), port=0))
        async with await asyncio.start_server(met, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            delayed = await asyncio.wait_for(found, 10)
            writer.close()
        return delayed

    assert asyncio.run(connect())


def test_a_port_that_is_taken_is_told() -> None:
    with listen(Settings(("any",), port=0)) as first:
        first.listen()
        with pytest.raises(UserError, match="can't listen"):
            listen(Settings(("any",), port=first.getsockname()[1]))
