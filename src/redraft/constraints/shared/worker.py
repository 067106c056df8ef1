"""A process that compiles constraints: ``python -m redraft.constraints.shared.worker``, driven by ``serve.compilers``.

Messages are pickles with their length before them. The first one is the ``TokenTexts`` of a tokenizer; each further one
is a tuple of constraints and a number of seconds, and its reply is the automaton, or an error. The process ends when
its input does, and a compilation that takes longer than its seconds ends the process.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from contextlib import suppress
from typing import Any, BinaryIO

from redraft.errors import UserError

_LENGTH = struct.Struct("<Q")
_MEMORY = 4 << 30  # bytes of address space
_NICENESS = 10  # requests that need no compilation come first


def send(stream: BinaryIO, message: Any) -> None:
    """Write a message."""
    content = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    stream.write(_LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read a message.

    Raises:
        EOFError: the other process has ended.
    """
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise EOFError
    size = _LENGTH.unpack(head)[0]
    content = stream.read(size)
    if len(content) < size:
        raise EOFError
    return pickle.loads(content)


def reply(kinds: Any, texts: Any) -> tuple[str, Any]:
    """The answer to a request: ``("ready", automaton)``, ``("refused", (what, remedy))`` or ``("failed", message)``."""
    from redraft.constraints.shared.compiling import compiled

    try:
        return "ready", compiled(kinds, texts)
    except UserError as error:
        return "refused", (error.what, error.remedy)
    except MemoryError:
        return "refused", ("The constraint needs too much memory.", "Give its repetitions smaller bounds.")
    except Exception as error:  # a bug: the server writes it to its log
        return "failed", f"{type(error).__name__}: {error}"


def main() -> None:
    """Compile until the input ends."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the replies
    with suppress(ImportError, ValueError, OSError):  # these bounds are only a second line of defence
        import resource

        os.nice(_NICENESS)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        texts = receive(requests)
        while True:
            kinds, seconds = receive(requests)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            answer = reply(kinds, texts)
            signal.setitimer(signal.ITIMER_REAL, 0)
            send(replies, answer)
    except (EOFError, BrokenPipeError):
        sys.exit(0)


if __name__ == "__main__":
    main()
