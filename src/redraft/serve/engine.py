"""The engine: many texts at once, batched anew at every denoising step.

A request asks for passes of the network through the generator that offline generation runs (``decode.Loop.turns``). At
each round the engine collects the next call of every text under way, lays those that can share a pass side by side
(``pool``), runs the network, hands everyone their logits back, and lets finished texts go and waiting ones in.
Samplers, lengths and caches may differ from text to text. Noise is keyed by (seed, step, position), so a text is the
same alone, in a crowd and offline.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from redraft.decode import Call, Turns
from redraft.drafting import Drafting
from redraft.errors import UserError
from redraft.model import Model
from redraft.models.parts.store import KeyValueStore
from redraft.serve import pool
from redraft.serve.reading import Reader, Span, Text
from redraft.serve.scheduler import FairQueue, Full
from redraft.serve.seats import Seats
from redraft.types import Step

_LOG = logging.getLogger("redraft.serve")
_SLACK = {"cpu": 48, "cuda": 4096}  # padding worth sharing a pass for, in positions: see benchmarks/RESULTS.md
_numbers = itertools.count()


@dataclass(frozen=True)
class Limits:
    """What an engine takes on."""

    rows: int = 32  # canvas rows in a batch; a text with several length candidates or beams takes several
    queue: int = 256  # texts waiting
    cells: int = 0  # longest row; 0: the model's context


class Refused(Exception):
    """The engine does not take a request now. ``wait``: seconds after which to try again."""

    def __init__(self, why: str, wait: int) -> None:
        super().__init__(why)
        self.why, self.wait = why, wait


@dataclass(frozen=True)
class Progress:
    """Something happened to a text: more of it is final, or there is a new picture of it."""

    job: Job
    text: str
    frame: dict[str, object] | None


@dataclass(frozen=True)
class Done:
    """A text is finished."""

    job: Job
    text: str  # the last piece of it
    result: Text
    frame: dict[str, object] | None


@dataclass(frozen=True)
class Failed:
    """A text came to nothing: ``mistake`` of the user, ``late`` (deadline), ``cancelled``, ``closed`` or ``bug``."""

    job: Job
    kind: str
    why: str


Event = Progress | Done | Failed


@dataclass(eq=False)
class Job:
    """One text to write. ``listen`` is called from the engine's thread and must return at once."""

    drafting: Drafting
    span: Span
    listen: Callable[[Event], None]
    stop: tuple[str, ...] = ()
    top: int = 0  # alternatives to keep of each token
    streams: bool = True  # wants Progress
    frames: Callable[[], bool] | None = None  # is there room for a picture just now? None: wants none
    deadline: float = float("inf")  # time.monotonic()
    number: int = field(default_factory=lambda: next(_numbers))
    cancelled: bool = False
    queued: float = 0.0  # time.monotonic() of each milestone; 0: not yet
    begun: float = 0.0
    first: float = 0.0  # first final text
    ended: float = 0.0
    pictured: float = 0.0  # seconds spent on pictures: they are no part of writing
    # the engine's own
    reader: Reader | None = None
    turns: Turns[None] | None = None
    call: Call | None = None
    seats: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.drafting.canvas.ids)

    @property
    def prompt(self) -> list[int]:
        board = self.drafting.canvas
        return [int(token) for token in board.ids[0, : int(board.prompt[0])]]


class Engine:
    """Writes texts with one model, on a thread of its own.

    Equal to offline generation: job by job the same ``Loop`` runs, over seats of one shared key-value store.
    """

    def __init__(self, model: Model, limits: Limits = Limits(), slack: int | None = None) -> None:
        self.model, self.limits = model, limits
        self.networks = {"main": model.writer()}
        if model.drafter is not None:
            self.networks["drafter"] = model.drafter.writer()
        self.cells = min(limits.cells or model.network.config.max_length, model.network.config.max_length)
        self.slack = _SLACK.get(model.network.device.type, 4096) if slack is None else slack
        self.stores: dict[tuple[str, int], KeyValueStore] = {}  # of all texts; the loops make them
        self.seats = Seats(limits.rows, self.stores)
        self.counts: Counter[str] = Counter()  # what has happened so far
        self._queue: FairQueue[Job] = FairQueue(limits.queue)
        self._active: list[Job] = []
        self._wake = threading.Condition()
        self._closing, self._stopped = False, False
        self._pace = 0.05  # running mean of the seconds between two departures
        self._departed = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="redraft-engine", daemon=True)
        self._thread.start()

    # ---- what other threads call

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def idle(self) -> bool:
        return not self._active and not len(self._queue)

    def submit(self, client: Hashable, jobs: list[Job]) -> None:
        """Queue texts, all or none. They share the fortune of one client's place in the order.

        Raises:
            Refused: the queue is full, or the engine is closing.
            UserError: a text needs more rows than there are, or is longer than a row.
        """
        for job in jobs:
            if job.rows > self.limits.rows:
                raise UserError(f"{job.rows} candidates or beams: at most {self.limits.rows} are served at once.")
            if job.drafting.canvas.room > self.cells:
                width = job.drafting.canvas.room
                raise UserError(f"prompt and answer of {width} tokens: at most {self.cells} are served here.")
        with self._wake:
            if self._closing:
                raise Refused("the server is shutting down", 5)
            try:
                self._queue.put(client, jobs)
            except Full:
                self.counts["refused"] += len(jobs)
                wait = max(1, round(self._pace * len(self._queue)))
                raise Refused(f"the queue is full ({self.limits.queue} texts are waiting)", min(wait, 60)) from None
            now = time.monotonic()
            for job in jobs:
                job.queued = now
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Let go of a text; its place is free at the next step. One that has finished is left alone."""
        job.cancelled = True
        with self._wake:
            self._wake.notify()

    def close(self, patience: float = 0.0) -> None:
        """Take nothing new, finish what is there within ``patience`` seconds, drop the rest, and end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(patience)
        self._stopped = True
        with self._wake:
            self._wake.notify()
        self._thread.join()

    # ---- the thread

    def _work(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while self.idle and not (self._closing or self._stopped):
                        self._wake.wait()
                    if self._stopped or self.idle:
                        break
                    leaving, entering = self._leaving(), self._entering()
                try:
                    for job in leaving:
                        self._give_up(job)
                    for job in entering:
                        self._enter(job)
                    self._round()
                except Exception:  # an error of ours outside of any one text: nobody may be left waiting
                    for job in list(self._active):
                        self._blame(job)
            for job in [*self._active, *self._queue]:
                self._fail(job, "closed", "the server was shut down before this text was finished")

    def _leaving(self) -> list[Job]:
        """Whom nobody waits for any more, queued or under way."""
        now = time.monotonic()

        def over(job: Job) -> bool:
            return job.cancelled or job.deadline < now

        return [*self._queue.discard(over), *filter(over, self._active)]

    def _entering(self) -> list[Job]:
        """Waiting texts for which there are seats. Nobody overtakes: a text that needs many rows gets its turn."""
        found: list[Job] = []
        free = self.seats.free
        while (job := self._queue.head()) is not None and job.rows <= free:
            found.append(self._queue.take())
            free -= job.rows
        self._active += found
        return found

    def _give_up(self, job: Job) -> None:
        if job.cancelled:
            self._fail(job, "cancelled", "the client has gone")
        else:
            self._fail(job, "late", "the text was not finished before its deadline")

    def _enter(self, job: Job) -> None:
        """Seat a text and take it to its first call."""
        job.begun = time.monotonic()
        prompt, loop = job.prompt, job.drafting.loop
        try:
            exact = loop.method.cache is None or loop.method.cache.exact
            job.seats = self.seats.take(job.rows, prompt, len(prompt) if loop.spec.isolate_prompt else 0, exact)
            job.drafting.canvas.slot = torch.tensor(job.seats)
            loop.stores, loop.room = self.stores, (self.limits.rows, self.cells)
            job.reader = Reader(job.drafting, job.span, job.stop, job.top, job.frames is not None)
            job.turns = job.drafting.turns()
        except Exception:
            self._blame(job)
            return
        self._advance(job, None)

    def _round(self) -> None:
        """One pass for everybody under way."""
        jobs = [job for job in self._active if job.call is not None]
        calls = [job.call for job in jobs if job.call is not None]
        for group in pool.groups(calls, self.slack):
            members, parts = [jobs[i] for i in group], [calls[i] for i in group]
            try:
                logits = pool.split(self._pass(parts), parts)
            except Exception:
                for job in members:
                    self._blame(job)
                continue
            for job, own in zip(members, logits, strict=True):
                self._advance(job, own)

    def _pass(self, calls: list[Call]) -> Tensor:
        merged = pool.merge(calls)
        self.counts["passes"] += 1
        self.counts["rows"] += len(merged.x)
        self.counts["positions"] += sum(int((call.ask.pos >= 0).sum()) for call in calls)
        self.counts["padding"] += merged.x.numel() - sum(call.ask.x.numel() for call in calls)
        if calls[0].store is not None:
            self.counts["reused"] += sum(int(call.ask.read.sum()) for call in calls if call.ask.read is not None)
        return self.networks[merged.net](merged, calls[0].store)

    def _advance(self, job: Job, logits: Tensor | None) -> None:
        """Hand a text its logits, and take it to its next call or to its end."""
        assert job.turns is not None and job.reader is not None
        try:
            while True:
                found = job.turns.send(logits)  # type: ignore[arg-type] # a generator starts with None
                if isinstance(found, Call):
                    job.call = found
                    return
                logits = None
                self._tell(job, job.reader, found)
                if job.reader.stopped:
                    job.turns.close()
                    break
        except StopIteration:
            pass
        except Exception:
            self._blame(job)
            return
        self._finish(job, job.reader)

    def _tell(self, job: Job, reader: Reader, step: Step) -> None:
        text = reader.take(step)
        if text and not job.first:
            job.first = time.monotonic()
        frame = self._picture(job, reader) if job.frames is not None and job.frames() else None
        if job.streams and (text or frame is not None):
            job.listen(Progress(job, text, frame))

    def _picture(self, job: Job, reader: Reader) -> dict[str, object]:
        """The canvas as it stands, with the seconds of writing so far."""
        now = time.monotonic()
        frame = {"seconds": round(now - job.begun - job.pictured, 6), **reader.frame()}
        job.pictured += time.monotonic() - now
        return frame

    def _finish(self, job: Job, reader: Reader) -> None:
        told = len(reader.text) if job.streams else 0
        try:
            result = reader.finish()
            frame = self._picture(job, reader) if job.frames is not None else None
        except Exception:
            self._blame(job)
            return
        self._depart(job)
        self.counts["finished"] += 1
        self.counts["tokens"] += result.written
        job.first = job.first or job.ended
        job.listen(Done(job, result.text[told:], result, frame))

    def _blame(self, job: Job) -> None:
        """A text failed: by a mistake of whoever asked for it, or by one of ours."""
        import sys

        error = sys.exc_info()[1]
        if isinstance(error, UserError):
            self._fail(job, "mistake", str(error))
        else:
            _LOG.exception("text %d failed", job.number)
            self._fail(job, "bug", "the text could not be written: an error of the server, see its log")

    def _fail(self, job: Job, kind: str, why: str) -> None:
        if job.turns is not None:
            job.turns.close()
        self._depart(job)
        self.counts[kind] += 1
        job.listen(Failed(job, kind, why))

    def _depart(self, job: Job) -> None:
        job.ended = time.monotonic()
        job.call = None
        if job in self._active:
            self._active.remove(job)
            self.seats.give(job.seats)
            self._pace = 0.9 * self._pace + 0.1 * (job.ended - self._departed)
            self._departed = job.ended
