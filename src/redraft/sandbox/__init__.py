"""Runs Python programs that nobody has read, such as a model's answers, in a process that can do little harm.

The process is limited in time, memory, output and open files. From its first line of foreign code on, a filter of
system calls (seccomp, ``sandbox.child``) allows it to compute, to read files and to write to what it was given. It
can't open a file for writing, change or remove files, open a socket, start a process or signal another one. It can
read what its user can read, and what it reads it can only print.

``Outcome.passed`` is not proof against a program that looks for the tests: it shares a process with them. It does
hold against one that ends early with exit code 0.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redraft.errors import UserError
from redraft.options import check, setting

_CHILD = Path(__file__).with_name("child.py")
_STARTING = 5.0  # seconds for the interpreter to start, besides the program's own time
_MACHINES = ("x86_64", "aarch64")
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
        program: its source. then: a second program, such as tests, that runs after it and has its names.
        stdin: standard input.
    Raises:
        UserError: programs can't be isolated on this machine.
    """
    require()
    limits = limits or Limits()
    key = secrets.token_hex(16)
    order = {"programs": [program, then], "key": key, "machine": platform.machine(), **asdict(limits)}
    with tempfile.TemporaryDirectory(prefix="redraft-sandbox-") as folder:
        where = Path(folder)
        given, output = where / "order.json", where / "stdout"
        given.write_text(json.dumps(order), encoding="utf-8")  # removed by the child before the program runs
        (where / "stdin").write_text(stdin, encoding="utf-8", errors="replace")
        result, write_end = os.pipe()
        try:
            with (where / "stdin").open("rb") as source, output.open("wb") as sink:
                code = _wait(_start(given, where, source, sink, write_end), limits.seconds)
                os.close(write_end)
                write_end = -1
                told = _told(result, key)
        finally:
            os.close(result)
            if write_end >= 0:
                os.close(write_end)
        with output.open("rb") as file:
            text = file.read(limits.output << 10).decode("utf-8", "replace")
    error = _ending(code) if told is None else str(told["error"])
    error = "memory" if error.startswith("MemoryError") else error
    return Outcome(not error, error, text)


def _start(given: Path, folder: Path, source: Any, sink: Any, result: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(_CHILD), str(given), str(result)],
        stdin=source,
        stdout=sink,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"LC_ALL": "C.UTF-8"},
        pass_fds=(result,),
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code of a process; None if it took longer than ``seconds`` and was killed."""
    try:
        return process.wait(seconds + _STARTING)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            process.kill()  # it can't have started others
            process.wait()


def _told(result: int, key: str) -> dict[str, Any] | None:
    """What the child said of the program, if it came to its end."""
    os.set_blocking(result, False)
    try:
        told = json.loads(os.read(result, _RESULT_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return told if isinstance(told, dict) and told.get("key") == key else None


def _ending(code: int | None) -> str:
    """Why a program without a result ended."""
    if code is None or code in (-signal.SIGXCPU, -signal.SIGALRM):
        return "time"
    if code < 0:
        return signal.Signals(-code).name if -code in {one.value for one in signal.Signals} else f"signal {-code}"
    return f"it ended by itself with code {code}"
