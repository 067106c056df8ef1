"""Runs Python programs that nobody has read, such as a model's answers, in a process that can do little harm.

The process is limited in time, memory, output and open files. Before its first line of foreign code it gives up its
capabilities; where the kernel has landlock it can read only Python's library and its own empty folder; and a filter of
system calls (seccomp, ``sandbox.child``) allows it to compute, to read and to write to what it was given. It can't open
a file for writing, change or remove files, open a socket, start a process, signal another one or read its memory.

Tests run in a process of their own, confined in the same way, and only plain data pass between the two
(``sandbox.calls``). A program can neither read the tests nor say that they passed, and a result whose comparison is
rigged arrives as what it is: no data. A program that is run alone, without tests, can still claim to have come to its
end.
"""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from redraft.errors import UserError
from redraft.options import check, setting

_CHILD = Path(__file__).with_name("child.py")
_STARTING = 5.0  # seconds for the interpreters to start, besides the program's own time
_ENDING = 0.25  # seconds for a process that is at its end to end
_MACHINES = ("x86_64", "aarch64")
_SHOWN = 240  # characters of a reason
_RESULT_BYTES = 1 << 16  # the size of a pipe, which a child can fill without waiting for its reader


@dataclass(frozen=True)
class Limits:
    """What a program may use."""

    seconds: float = setting(4.0, "Time, of the clock and of the processor.", above=0, most=3600, unit="seconds")
    memory: int = setting(512, "Memory, with that of the interpreter.", least=64, unit="MiB")
    output: int = setting(64, "Output; the rest is an error in the program.", least=1, most=1 << 20, unit="KiB")

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool  # it ran to its end without an exception
    reason: str  # why it did not: the exception, ``time``, ``memory`` or the signal that ended it; empty if it passed
    output: str  # what it wrote to standard output


def available() -> bool:
    """Can programs be isolated on this machine? It takes Linux on x86-64 or 64-bit ARM."""
    return sys.platform == "linux" and platform.machine() in _MACHINES


def require() -> None:
    """Check that programs can be isolated.

    Raises:
        UserError: not on this machine.
    """
    if not available():
        what = f"Programs of a model can't be isolated on {platform.system()} ({platform.machine()})."
        raise UserError(what, "Use Linux on x86-64 or 64-bit ARM.")


def run(program: str, then: str = "", stdin: str = "", limits: Limits | None = None) -> Outcome:
    """Run a Python program. It has the standard library and no other packages.

    It returns for every text, also one that is no program, and takes no longer than the limit and a few seconds.

    Args:
        program: its source.
        then: tests, which use the program's names. They pass plain data to its functions, and get plain data back;
            what a function does to its arguments is not seen.
        stdin: standard input.
    Raises:
        UserError: programs can't be isolated on this machine.
    """
    require()
    limits = limits or Limits()
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="redraft-sandbox-")))
        (where / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        source = stack.enter_context((where / "stdin").open("rb"))
        sink = stack.enter_context(tempfile.TemporaryFile())
        error = _run(program, then, limits, _Place(stack, where, source, sink))
        sink.seek(0)
        text = sink.read(limits.output << 10).decode("utf-8", "replace")
    return Outcome(not error, error, text)


@dataclass(frozen=True)
class _Place:
    """Where the processes of a run are, and what is closed and removed after it."""

    stack: ExitStack
    folder: Path
    stdin: IO[bytes]
    stdout: IO[bytes]

    def pipe(self) -> tuple[IO[bytes], IO[bytes]]:
        """The ends of a pipe, to read and to write."""
        read, write = os.pipe()
        return self._kept(open(read, "rb", buffering=0)), self._kept(open(write, "wb", buffering=0))

    def _kept(self, file: IO[bytes]) -> IO[bytes]:
        return self.stack.enter_context(file)

    def start(self, order: dict[str, Any], read: IO[bytes] | None = None, write: IO[bytes] | None = None) -> _Process:
        """Start a process with an order and the ends of two pipes, which it alone keeps."""
        told, tell = self.pipe()
        ends = {"result": tell, "read": read, "write": write}
        numbers = {name: -1 if end is None else end.fileno() for name, end in ends.items()}
        judges = order["role"] == "tests"
        with tempfile.TemporaryFile() as given:  # without a name, so that no other process can open it
            given.write(json.dumps({**order, **numbers, "machine": platform.machine()}).encode())
            given.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD), str(given.fileno())],
                stdin=subprocess.DEVNULL if judges else self.stdin,
                stdout=subprocess.DEVNULL if judges else self.stdout,
                stderr=subprocess.DEVNULL,
                cwd=self.folder,
                env={"LC_ALL": "C.UTF-8"},
                pass_fds=[given.fileno(), *(number for number in numbers.values() if number >= 0)],
                start_new_session=True,
            )
        for end in ends.values():
            if end is not None:
                end.close()
        found = _Process(process, told)
        self.stack.callback(found.stop)
        return found


class _Process:
    """A process, and what it tells: a line when it begins with foreign code, and one when that has ended."""

    def __init__(self, process: subprocess.Popen[bytes], told: IO[bytes]) -> None:
        self.process, self._told = process, told

    def wait(self, seconds: float) -> bool:
        """Has it ended within some seconds?"""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    def started(self) -> None:
        """Wait until it begins, ends, or takes too long to."""
        begins = select.poll()
        begins.register(self._told, select.POLLIN | select.POLLHUP)
        begins.poll(1000 * _STARTING)

    def stop(self) -> None:
        """End it. It can't have started others."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def result(self) -> dict[str, Any] | None:
        """What it told at its end."""
        os.set_blocking(self._told.fileno(), False)
        try:
            told = json.loads(os.read(self._told.fileno(), _RESULT_BYTES).rpartition(b"started\n")[2])
        except (OSError, ValueError, RecursionError):
            return None
        return told if isinstance(told, dict) and isinstance(told.get("error"), str) else None


def _run(source: str, tests: str, limits: Limits, place: _Place) -> str:
    """How a program and its tests ended; empty if well."""
    order = {**asdict(limits), "wall": limits.seconds}
    if not tests.strip():
        alone = place.start({**order, "role": "program", "source": source})
        alone.started()
        return _named(alone, alone.wait(limits.seconds + _ENDING))
    asked, ask = place.pipe()
    answered, answer = place.pipe()
    waits = {"wall": limits.seconds + _STARTING}  # for the program to begin
    judge = place.start({**order, **waits, "role": "tests", "source": tests}, answered, ask)
    tried = place.start({**order, "role": "program", "source": source}, asked, answer)
    tried.started()
    ended = judge.wait(limits.seconds + _ENDING)
    told = judge.result()
    if told is not None and told["error"] != "Gone":
        return _short(told["error"])
    if told is None and ended:
        return _ending(judge.process.returncode)  # the tests themselves ran out of time or memory
    ended = tried.wait(_ENDING)
    return _named(tried, ended) or "it did not answer the tests"


def _named(process: _Process, ended: bool) -> str:
    """Why a program ended; empty if well."""
    if not ended:
        return "time"
    told = process.result()
    return _ending(process.process.returncode) if told is None else _short(told["error"])


def _short(error: str) -> str:
    return "memory" if error.startswith("MemoryError") else error[:_SHOWN]


def _ending(code: int) -> str:
    """Why a program without a result ended."""
    if code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "time"
    if code < 0:
        return signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else f"signal {-code}"
    return f"it ended by itself with code {code}"
