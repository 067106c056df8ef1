"""The sandbox: a program can compute and print, and nothing else; every program comes to an end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redraft import sandbox
from redraft.sandbox import Limits

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="programs can't be isolated on this machine")


def run(program: str, then: str = "", stdin: str = "", seconds: float = 20.0) -> sandbox.Outcome:
    return sandbox.run(program, then, stdin, Limits(seconds=seconds, memory=128, output=1))


def test_a_program_computes_reads_and_prints() -> None:
    found = run("import math, threading\nf = lambda x: math.sqrt(x)\nprint(input()[::-1])", "assert f(9) == 3", "abc")
    assert found == sandbox.Outcome(True, "", "cba\n")


def test_threads_are_allowed() -> None:
    assert run("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()").passed


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("assert 1 == 2", "AssertionError"),
        ("def (", "SyntaxError"),
        ("x = '''", "SyntaxError"),  # it can't swallow the tests
        ("\0", "SyntaxError"),
        ("print('\ud800')", "Unicode"),
        ("x = bytearray(1 << 40)", "memory"),
        ("print('x' * 5000)", "OSError"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "ended by itself"),
    ],
)
def test_what_ends_a_program_early_is_named(program: str, reason: str) -> None:
    found = run(program, "assert True")
    assert not found.passed and reason in found.reason


@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(60)"])
def test_a_program_that_does_not_end_is_ended(program: str) -> None:
    assert run(program, seconds=0.3) == sandbox.Outcome(False, "time", "")


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        pytest.param(f"import os; os.kill({os.getpid()}, 0)", id="kill"),
        "open('new', 'w')",
        "open('stdin', 'r+')",
        "import os; os.remove('stdin')",
        "import os; os.rename('stdin', 'other')",
        "import os; os.mkdir('folder')",
        "import os; os.chmod('stdin', 0o777)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (99, 99))",
    ],
)
def test_what_reaches_beyond_the_process_is_refused(program: str) -> None:
    found = run(program)
    assert not found.passed and ("PermissionError" in found.reason or "not allowed" in found.reason)


def test_nothing_of_the_run_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    run("import os; os._exit(1)")
    assert not list(tmp_path.iterdir()) and len(os.listdir("/proc/self/fd")) == before
