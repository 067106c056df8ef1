"""A ``redraft`` command that starts in milliseconds: a process that has imported torch forks for every call.

Importing torch takes some seconds of a core. A test that runs a script of many commands puts ``command(folder)`` first
in its PATH. What the command does is that of the real one, in a process of its own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -SE
import json, os, signal, socket, sys

server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(call).to_bytes(4, "big")], [0, 1, 2])
server.sendall(call)
answers = server.makefile()
worker = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(worker, number))
sys.exit(int(answers.readline()))
"""


@contextmanager
def command(folder: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A folder with the command in it, for the time of the context."""
    address, place = str(folder / "preloaded.socket"), folder / "bin"
    place.mkdir()
    (place / "redraft").write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    (place / "redraft").chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.preloaded", address],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdout=subprocess.PIPE,
    )
    try:
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        yield place
    finally:
        server.kill()
        server.communicate()


def serve(address: str) -> None:
    """Accept calls until killed. Returns only in a process that has a call to run, as if it had just been started."""
    import redraft.generation.start
    import redraft.train.loop  # noqa: F401  torch and what most commands need, for all the forks

    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the watching processes
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            head, files, _, _ = socket.recv_fds(connection, 4, 3)
            with connection.makefile("rb") as call:
                words, folder, environment = json.loads(call.read(int.from_bytes(head, "big")))
            worker = os.fork()
            if worker == 0:
                for number, file in enumerate(files):
                    os.dup2(file, number)
                os.chdir(folder)
                os.environ.clear()
                os.environ.update(environment)
                sys.argv = ["redraft", *words]
                return
            connection.sendall(f"{worker}\n".encode())
            _, status = os.waitpid(worker, 0)
            code = os.waitstatus_to_exitcode(status)
            connection.sendall(f"{code if code >= 0 else 128 - code}\n".encode())
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    from redraft.cli._main import run

    serve(sys.argv[1])
    run()
