"""Programs that want to do harm, to read what is not theirs, or to pass tests that they fail: none succeeds."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from redraft import sandbox
from redraft.sandbox import Limits

pytestmark = pytest.mark.skipif(not sandbox.available(), reason="programs can't be isolated on this machine")

WRITES = """import os
def everywhere(data):
    for number in range(3, 32):
        try: os.write(number, data)
        except OSError: pass
everywhere"""
# Every program defines f wrongly; HOME holds a secret, PORT is listened on, PARENT is the process of this test.
HOSTILE = {
    # resources
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork by clone": "import ctypes; ctypes.CDLL(None).syscall(56, 17, 0, 0, 0, 0); ctypes.CDLL(None).fork(); 1/0",
    "vfork": "import ctypes; assert ctypes.CDLL(None).vfork() > 0",
    "thread bomb": "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(9,)).start()",
    "memory": "x = [bytearray(1 << 20)]\nwhile True: x.append(bytearray(1 << 24))",
    "mapped memory": "import mmap; mmap.mmap(-1, 1 << 40)",
    "recursion": "def g(): g()\ng()",
    "deep parse": "eval('(' * 90000)",
    "large number": "x = 9 ** 9 ** 9",
    "regular expression": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "endless loop": "while True: pass",
    "endless sleep": "import time; time.sleep(99)",
    "waits for input": "import time\nwhile True: input() if False else time.sleep(1)",
    "endless call": "def f(x):\n    while True: pass",
    "catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignores the alarm": "import signal; signal.signal(signal.SIGALRM, signal.SIG_IGN)\nimport time; time.sleep(99)",
    "blocks signals": "import signal, time; signal.pthread_sigmask(0, range(1, 65)); time.sleep(99)",
    "ignores the limit of time": "import signal; signal.signal(24, signal.SIG_IGN); signal.signal(14, signal.SIG_IGN)\n"
    "while True: pass",
    "raises limits": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "huge output": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "many files": "x = [open('/dev/null') for _ in range(99)]",
    # files
    "writes outside": "open('HOME/new', 'w').write('x')",
    "writes in its folder": "open('new', 'w')",
    "appends to its input": "open('stdin', 'a')",
    "writes by a descriptor": "import os; os.open('HOME/secret', os.O_RDWR)",
    "makes a folder": "import os; os.mkdir('HOME/folder')",
    "removes a file": "import os; os.unlink('HOME/secret')",
    "renames a file": "import os; os.rename('HOME/secret', 'HOME/other')",
    "symbolic link": "import os; os.symlink('HOME/secret', 'link'); print(open('link').read())",
    "hard link": "import os; os.link('HOME/secret', 'link')",
    "changes rights": "import os; os.chmod('HOME/secret', 0o777)",
    "changes its folder": "import os; os.chdir('HOME')",
    "shared memory": "from multiprocessing import shared_memory; shared_memory.SharedMemory('x', True, 9)",
    "memory file": "import os; os.memfd_create('x')",
    "named pipe": "import os; os.mkfifo('pipe')",
    "database": "import sqlite3; sqlite3.connect('HOME/data').execute('create table x (y)')",
    "pickle": "import pickle; pickle.loads(b\"cos\\nsystem\\n(S'touch HOME/new'\\ntR.\"); 1/0",
    "shell": "import os; assert os.system('touch HOME/new') == 0",
    "another program": "import os; os.execv('/bin/sh', ['sh', '-c', 'touch HOME/new'])",
    "sub-process": "import subprocess; subprocess.Popen(['/bin/sh', '-c', 'sleep 99'])",
    "process pool": "import multiprocessing; multiprocessing.Process(target=print).start()",
    # the network and other processes
    "connects": "import socket; socket.create_connection(('127.0.0.1', PORT))",
    "listens": "import socket; socket.socket().bind(('', 0))",
    "asks for a page": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:PORT')",
    "asynchronous": "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', PORT))",
    "kills its parent": "import os; os.kill(os.getppid(), 9)",
    "kills a process": "import os; os.kill(PARENT, 15)",
    "kills its group": "import os; os.killpg(0, 9)",
    "signals by a descriptor": "import fcntl, os; fcntl.fcntl(1, fcntl.F_SETOWN, PARENT); fcntl.fcntl(1, 10, 9)",
    "debugs": "import ctypes; assert ctypes.CDLL(None).ptrace(16, PARENT, 0, 0) == 0",
    "changes its user": "import os; os.setuid(1)",
    "changes priority": "import os; os.nice(-5)",
    # reading
    "reads a secret": "print(open('HOME/secret').read())",
    "reads the list of users": "print(open('/etc/passwd').read()); 1/0",
    "lists a folder": "import os; print(os.listdir('HOME'))",
    "reads its memory": "open('/proc/self/mem', 'rb')",
    "reads its parent's memory": "open('/proc/PARENT/mem', 'rb')",
    "reads its parent's environment": "open('/proc/PARENT/environ', 'rb').read()",
    "reads the tests' memory": "import os\nfor n in range(os.getpid() - 9, os.getpid()): open(f'/proc/{n}/mem', 'rb')",
    # pretends to pass
    "exits": "import sys; sys.exit(0)",
    "exits at once": "import os; os._exit(0)",
    "exits in a call": "import os\ndef f(x): os._exit(0)",
    "exits in a thread": "import os, threading; threading.Thread(target=os._exit, args=(0,)).start()\nwhile True: pass",
    "exits later": "import atexit, os; atexit.register(os._exit, 0)",
    "aborts": "import os; os.abort()",
    "equal to everything": "class A:\n    __eq__ = lambda s, o: True\n    __hash__ = None\nf = lambda x: A()",
    "a number equal to everything": "class A(int):\n    __eq__ = lambda s, o: True\n    __hash__ = None\nf = A",
    "a text equal to everything": "class A(str):\n    __eq__ = lambda s, o: True\nf = lambda x: A('9')",
    "changes Python's names": "import builtins\nbuiltins.AssertionError = type('A', (), {})\nf = lambda x: 1",
    "changes comparison": "import operator; operator.eq = operator.ne = lambda a, b: True",
    "replaces modules": "import sys\nfor name in list(sys.modules): sys.modules[name] = None",
    "replaces itself": "import sys, types; sys.modules['__main__'] = types.ModuleType('__main__'); f = lambda x: 0",
    "looks for the tests": "import gc, sys\nx = [o for o in gc.get_objects() if type(o) is dict and 'source' in o]\n"
    "def f(x_, frame=sys._getframe): return 9 if any('== 9' in str(v) for v in x) else 0",
    "walks the stack": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        if 'error' in frame.f_locals: return 9\n        frame = frame.f_back",
    "says that it passed": f'{WRITES}(b\'started\\n{{"error": ""}}\\n\')\nos._exit(0)',
    "says that it is ready and nothing more": f"{WRITES}(b'\"ready\"\\n')\nwhile True: pass",
    "answers nonsense": f"{WRITES}(b'[[[[\\n' * 99)",
    "answers a number that is too long": "f = lambda x: 10 ** 10 ** 7",
    "answers itself": "x = []\nx.append(x)\nf = lambda _: x",
    "traces": "import sys\nsys.settrace(lambda *a: sys.exit(0))\ndef f(x): return 0",
    "an exception that is no exception": "class E(BaseException): pass\ndef f(x): raise E",
}


READING = ("reads a secret", "reads the list of users", "lists a folder")


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        found.listen()
        found.setblocking(False)
        yield found


def landlock() -> bool:
    """Does the kernel have it?"""
    return ctypes.CDLL(None).syscall(444, None, 0, 1) > 0


def children() -> set[str]:
    """The processes that this one has started and not yet waited for."""
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_programs_fail_and_leave_nothing(
    name: str, listener: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in READING and not landlock():
        pytest.skip("this kernel can't keep a program from reading files")
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    (home / "secret").write_text("SECRET")
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    program = HOSTILE[name]
    for word, value in (("HOME", home), ("PORT", listener.getsockname()[1]), ("PARENT", os.getpid())):
        program = program.replace(word, str(value))
    before = children(), os.listdir("/proc/self/fd")
    found = sandbox.run(f"f = lambda x: 0\n{program}", "assert f(3) == 9", "", Limits(0.4, 192, 16))
    assert not found.passed and found.reason
    assert len(found.output) <= 16 << 10
    assert "secret" not in found.output.lower() and "root:" not in found.output
    assert [(path.name, path.read_text()) for path in home.iterdir()] == [("secret", "SECRET")]
    assert not list(scratch.iterdir())
    assert (children(), len(os.listdir("/proc/self/fd"))) == (before[0], len(before[1]))
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(x): return {1: [x, (2.5, None)], 'a': {3}}", "assert f('b') == {1: ['b', (2.5, None)], 'a': {3}}"),
        ("import math\ndef f(x): return math.inf * x", "assert f(-1) == -math.inf and math.isinf(f(1))"),
        ("def f(x): raise KeyError(x)", "try: f(1)\nexcept KeyError: pass\nelse: assert False"),
        (
            "class P:\n    def __init__(self, a): self.a = a\ndef f(p): return p.a",
            "p = P(1); p.a = 5\nassert f(p) == 5",
        ),
        ("def f(n):\n    for i in range(n): yield i", "assert list(f(3)) == [0, 1, 2]"),
        ("def sum(a, b): return a * b", "assert sum(3, 4) == 12"),  # a name of Python's own, asked for by the tests
        ("X = b'z'\nf = lambda *a, k=0: (a, k)", "def check(g):\n    assert g(1, k=X) == ((1,), b'z')\ncheck(f)"),
        ("f = lambda n: 10 ** n", "assert f(9000) == 10 ** 9000"),
    ],
)
def test_honest_programs_pass(program: str, tests: str) -> None:
    assert sandbox.run(program, tests, "", Limits(seconds=20)) == sandbox.Outcome(True, "", "")


def test_a_program_cannot_change_what_its_results_are_checked_with() -> None:
    rigged = "def abs(x): return 0\ndef len(x): return 9\ndef f(x): return 1.0"
    assert not sandbox.run(rigged, "assert abs(f(3) - 9) < 1e-6", "", Limits(seconds=20)).passed
