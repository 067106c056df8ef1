"""Compiles the constraints of requests in other processes, which can be killed.

A constraint of a few bytes can take seconds, and Python's lock would hold up every other request meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from redraft.constraints import compiled_automata, kinds_of, texts_of
from redraft.constraints.shared.worker import receive, send
from redraft.errors import UserError
from redraft.serve.scheduler import FairSlots

if TYPE_CHECKING:
    from redraft.constraints.automata.token_automaton import TokenAutomaton
    from redraft.constraints.shared.compiling import TokenTexts
    from redraft.data.tokenizer import Tokenizer


class CompilerFailed(Exception):
    """A compiler has ended by itself, or has found a bug."""


@dataclass
class _Worker:
    """One process, for one tokenizer."""

    texts: TokenTexts
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        here = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "redraft.constraints.shared.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **here, "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the server
        )

    def compile(self, kinds: tuple[Any, ...], seconds: float, fresh: bool) -> TokenAutomaton:
        """Run in a thread: it waits for the process.

        Raises:
            UserError: the constraint can't be compiled.
            CompilerFailed: the process has ended, or has found a bug.
        """
        requests, replies = cast(BinaryIO, self.process.stdin), cast(BinaryIO, self.process.stdout)
        try:
            if fresh:
                send(requests, self.texts)
            send(requests, (kinds, seconds))
            state, found = receive(replies)
        except (EOFError, OSError, ValueError) as error:
            raise CompilerFailed("the process has ended") from error
        if state == "refused":
            raise UserError(*found)
        if state == "failed":
            raise CompilerFailed(found)
        return cast("TokenAutomaton", found)

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@dataclass
class _Compilation:
    """A compilation under way, and how many requests wait for it."""

    task: asyncio.Task[TokenAutomaton]
    waiting: int = 0


class Compilers:
    """A few compiling processes, which are started when they are needed. Used on the event loop only.

    Clients take turns. Requests with the same constraint share its compilation, which is killed when none of them waits
    any longer, or after ``seconds``.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self.seconds = seconds
        self._slots = FairSlots(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="redraft-compiler")
        self._idle: list[tuple[Tokenizer, _Worker]] = []
        self._count = count
        self._running: dict[tuple[int, Hashable], _Compilation] = {}

    async def compile(self, client: Hashable, tokenizer: Tokenizer, wanted: Mapping[str, Any]) -> TokenAutomaton:
        """The automaton of constraints. As long as the caller holds it, ``constraints.build_all`` finds it.

        Raises:
            UserError: the constraint can't be compiled, or not in time.
        """
        kinds = kinds_of(wanted)
        known = compiled_automata().find(tokenizer, kinds)
        if known is not None:
            return known
        key = id(tokenizer), kinds
        running = self._running.get(key)
        if running is None:
            running = _Compilation(asyncio.create_task(self._compile(client, tokenizer, kinds)))
            self._running[key] = running
        running.waiting += 1
        try:
            return await asyncio.shield(running.task)
        finally:
            running.waiting -= 1
            if not running.waiting:
                running.task.cancel()
                if self._running.get(key) is running:
                    del self._running[key]

    async def _compile(self, client: Hashable, tokenizer: Tokenizer, kinds: tuple[Any, ...]) -> TokenAutomaton:
        async with self._slots.of(client):
            worker, fresh = self._worker(tokenizer)
            work = asyncio.get_running_loop().run_in_executor(
                self._threads, worker.compile, kinds, self.seconds + 1, fresh
            )
            try:
                found = await asyncio.wait_for(asyncio.shield(work), self.seconds)
            except UserError:
                self._idle.append((tokenizer, worker))
                raise
            except TimeoutError:
                await self._end(worker, work)
                raise UserError(
                    f"The constraint takes more than {self.seconds:g} s to compile.",
                    "Give its repetitions smaller bounds, or split it.",
                ) from None
            except BaseException:
                await self._end(worker, work)
                raise
            self._idle.append((tokenizer, worker))
        compiled_automata().keep(tokenizer, kinds, found)
        return found

    def _worker(self, tokenizer: Tokenizer) -> tuple[_Worker, bool]:
        """An idle process for this tokenizer, or a new one. A process serves one tokenizer."""
        for at, (owner, worker) in enumerate(self._idle):
            if owner is tokenizer and worker.process.poll() is None:
                del self._idle[at]
                return worker, False
        while len(self._idle) >= self._count:
            self._idle.pop(0)[1].kill()
        return _Worker(texts_of(tokenizer)), True

    async def _end(self, worker: _Worker, work: asyncio.Future[Any]) -> None:
        """Kill a process, and wait for the thread that waits for it."""
        worker.kill()
        with contextlib.suppress(BaseException):
            await work

    async def close(self, until: float = 0.0) -> None:
        """End all processes."""
        for running in list(self._running.values()):
            running.task.cancel()
        while self._running and time.monotonic() < until:
            await asyncio.sleep(0.01)
        for _, worker in self._idle:
            worker.kill()
        self._idle.clear()
        self._threads.shutdown(wait=False)
