"""Reports the events of a run to its listeners, and its position whenever nothing was reported for ten seconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

from redraft.files import disk_error
from redraft.train.logging import Event, MetricsFile, TensorBoard, Watcher
from redraft.types import Batch

QUIET_SECONDS = 10.0  # after this long without an event, the position is reported
_LOSS_SECONDS = 2.0  # how old the loss in it may be


@dataclass(frozen=True)
class Position:
    """Where a run is."""

    doing: str = "preparing data and model"
    done: int = 0  # batches of it ...
    of: int = 0  # ... out of these; 0: not counted
    step: int = 0
    tokens: int = 0
    progress: float = 0.0  # share of the budget that is spent
    loss: float | None = None  # mean over target tokens since the last report; None: not known yet
    end: float | None = None  # when the run is expected to end, by ``time.monotonic``


class Reporter:
    """Passes the events of a run to its listeners, one at a time. Use as a context manager.

    A thread reports the position as an event ``progress`` whenever ``QUIET_SECONDS`` have passed without an event:
    one update of a large model can take minutes. Only ``on_event`` gets these events, from that thread. An exception
    that it raises there is raised in the run by the next ``report``.
    """

    def __init__(self, work: Path, on_event: Watcher | None) -> None:
        self._work, self._on_event = work, on_event
        self._files: list[MetricsFile | TensorBoard] = []
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._begun = self._reported = self._loss_noted = time.monotonic()
        self._position = Position()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._watch, name="training progress", daemon=True)

    def __enter__(self) -> Reporter:
        if self._on_event is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        if self._on_event is not None:
            self._thread.join()
        for file in self._files:
            file.close()

    def open_files(self, step: int) -> None:
        """Open ``metrics.jsonl``, and TensorBoard files where it is installed. The run continues after ``step``."""
        self._files.append(MetricsFile(self._work / "metrics.jsonl", step))
        if TensorBoard.installed():
            self._files.append(TensorBoard(self._work / "tensorboard", step))

    def report(self, event: Event) -> None:
        """Pass an event to all listeners.

        Raises:
            UserError: a file can't be written. Whatever a listener raises.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            self._reported = time.monotonic()
            self._position = replace(self._position, step=event.step, tokens=event.tokens)
            if event.kind == "update":
                self._loss_noted, end = self._reported, self._reported + event.values["eta_seconds"]
                self._position = replace(self._position, loss=event.values["loss"], end=end)
            try:
                for file in self._files:
                    file(event)
                if self._on_event is not None:
                    self._on_event(event)
            except OSError as error:
                raise disk_error(error, self._work) from None

    @property
    def wants_loss(self) -> bool:
        """Should the next ``updated`` give the loss? Computing it makes the host wait for the device."""
        return time.monotonic() - self._loss_noted > _LOSS_SECONDS

    def doing(self, what: str, done: int = 0, of: int = 0) -> None:
        """Note what the run is doing now, and how many batches of it are done."""
        self._position = replace(self._position, doing=what, done=done, of=of)

    def updated(self, step: int, tokens: int, progress: float, loss: float | None) -> None:
        """Note the position after an update. A ``loss`` of None keeps the one noted before."""
        if loss is None:
            loss = self._position.loss
        else:
            self._loss_noted = time.monotonic()
        self._position = Position("", 0, 0, step, tokens, progress, loss, self._position.end)

    def counted(self, what: str, batches: Sequence[Batch]) -> Iterator[Batch]:
        """The batches, noting each one as it is taken."""
        self.doing(what, 0, len(batches))
        return self._counted(what, batches)

    def _counted(self, what: str, batches: Sequence[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches):
            self.doing(what, number, len(batches))
            yield batch

    def _watch(self) -> None:
        assert self._on_event is not None
        wait = QUIET_SECONDS
        while not self._stopped.wait(wait):
            with self._lock:
                wait = QUIET_SECONDS - (time.monotonic() - self._reported)
                if wait > 0:
                    continue
                wait, self._reported = QUIET_SECONDS, time.monotonic()
                try:
                    self._on_event(self._progress())
                except Exception as error:
                    self._error = error
                    return

    def _progress(self) -> Event:
        at, now = self._position, time.monotonic()
        values = {
            "doing": at.doing,
            "done": at.done,
            "of": at.of,
            "progress": at.progress,
            "loss": at.loss,
            "seconds": now - self._begun,
            "eta_seconds": None if at.end is None else max(at.end - now, 0.0),
        }
        return Event("progress", at.step, at.tokens, values)
