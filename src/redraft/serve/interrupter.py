"""Ends a computation of another thread that goes on although nobody wants its result any more."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_INTERVAL = 0.1  # seconds between two looks
_AGAIN = 1.0  # seconds after which a computation that has caught the exception gets another one


class Interrupted(BaseException):
    """Raised inside of a computation that must end. Not an ``Exception``, so that its own handlers let it pass."""


class Interrupter:
    """Runs computations of one thread, and interrupts them from another.

    CPython can raise an exception in another thread, between two of its bytecodes. So any loop in Python ends, whatever
    a sampler does; a call into C ends first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unwanted: Callable[[], bool] | None = None  # of the computation under way
        self._thread = 0
        self._raised_at = 0.0  # 0: not raised
        self._began = threading.Event()
        self._closed = False
        threading.Thread(target=self._watch, name="redraft-interrupter", daemon=True).start()

    def run(self, compute: Callable[[], T], unwanted: Callable[[], bool]) -> T:
        """The result of ``compute``.

        Args:
            unwanted: asked from time to time, in another thread: whether to interrupt the computation.
        Raises:
            Interrupted: it was.
        """
        try:
            try:
                self._begin(unwanted)
                return compute()
            finally:
                self._end()
        except Interrupted:
            self._end()  # in case it was raised on the way into the block above
            raise

    def close(self) -> None:
        """End the watching thread."""
        self._closed = True
        self._began.set()

    def _begin(self, unwanted: Callable[[], bool]) -> None:
        with self._lock:
            self._thread, self._unwanted, self._raised_at = threading.get_ident(), unwanted, 0.0
        self._began.set()

    def _end(self) -> None:
        """Make sure that nothing is raised from here on."""
        while True:
            try:
                with self._lock:
                    self._unwanted = None
                    if self._raised_at:  # it may not have arrived yet
                        _raise_in(self._thread, None)
                        self._raised_at = 0.0
                return
            except Interrupted:
                continue

    def _watch(self) -> None:
        while not self._closed:
            self._began.wait()
            self._began.clear()
            time.sleep(_INTERVAL)
            while self._look():
                time.sleep(_INTERVAL)

    def _look(self) -> bool:
        """Interrupt the computation under way, if it is unwanted. Returns whether there is one."""
        with self._lock:
            if self._unwanted is None:
                return False
            now = time.monotonic()
            if now - self._raised_at > _AGAIN and self._unwanted():
                _raise_in(self._thread, Interrupted)
                self._raised_at = now
            return True


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an exception in another thread; None takes back one that has not arrived."""
    wanted = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), wanted)
