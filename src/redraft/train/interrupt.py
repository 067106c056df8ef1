"""Ctrl-C during training: the current update is finished and saved. A second Ctrl-C stops at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from redraft.train.ranks import Ranks

_ECHO_SECONDS = 3.0  # within which a second Ctrl-C of several processes is the first one again
_NOTICE = b"\nStopping after this update, to save it. Press Ctrl-C again to stop at once.\n"


class Interrupt:
    """Notes Ctrl-C while it is used as a context manager. Elsewhere than in the main thread it does nothing."""

    def __init__(self, ranks: Ranks) -> None:
        """
        Args:
            ranks: the processes of the run. The terminal tells each of several, and then torchrun tells them once more.
        """
        self.requested = False
        self._ranks, self._ignored_until = ranks, 0.0
        self._before: Any = None

    def __enter__(self) -> Interrupt:
        own = threading.current_thread() is threading.main_thread()
        if own and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            if time.monotonic() < self._ignored_until:
                return
            self._restore()
            raise KeyboardInterrupt
        self.requested = True
        if self._ranks.world > 1:
            self._ignored_until = time.monotonic() + _ECHO_SECONDS
        else:
            self._restore()  # so that the next Ctrl-C raises KeyboardInterrupt, whatever runs then
        if self._ranks.is_writer:
            os.write(2, _NOTICE)  # not through Python's buffer, which the interrupted code may be writing to

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
