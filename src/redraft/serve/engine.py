"""Continuous batching: the engine forms a new batch for every denoising step.

Each sequence runs the same generator as offline generation (``generation.loop.Loop.steps``), which yields a ``Call``
whenever it needs a forward pass. In each step the engine

1. removes sequences that were cancelled or are past their deadline,
2. starts queued sequences for which key-value slots are free,
3. groups the pending calls that can share a forward pass (``batching``), runs the network once per group, and sends
   each sequence its logits,
4. on an accelerator, waits once for the tokens that all sequences have drawn, and sends each sequence its own.

Sequences may use different samplers, lengths and cache policies. Noise is keyed by (seed, step, position), so a
sequence does not depend on the other sequences in its batch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.generation.loop import Call
from redraft.generation.sampling import Draw
from redraft.generation.start import networks
from redraft.model import Model
from redraft.models.parts.store import KeyValueStore
from redraft.runtime import download
from redraft.serve import batching
from redraft.serve.draft_lengths import DraftLengths
from redraft.serve.incremental_text import IncrementalDecoder
from redraft.serve.interrupter import Interrupted, Interrupter
from redraft.serve.jobs import Failed, Finished, Job, Progress, Rejected, RequestOutcome
from redraft.serve.kv_slots import KvSlots
from redraft.serve.scheduler import FairQueue, QueueFull
from redraft.types import Step

_LOG = logging.getLogger("redraft.serve")
# Positions of padding that cost less than a forward pass of their own: see benchmarks/RESULTS.md.
_PADDING_BUDGET = {"cpu": 48, "cuda": 4096}
_RETRY_AFTER_SHUTDOWN, _LONGEST_RETRY = 5, 60  # seconds
_LONGEST_STEP = 1.0  # seconds that a shutdown waits for a computation that it can't interrupt
_SLOW = 0.02  # seconds between two passes of a sequence from which on it takes turns with the others
_SLOWER = 4.0  # how many times longer it takes than the others on average


@dataclass(frozen=True)
class EngineLimits:
    """How much work an engine accepts."""

    rows: int = 32  # canvas rows in a batch; a sequence with several candidate lengths or beams needs several
    queue: int = 256  # waiting sequences
    positions: int = 0  # longest row; 0: the model's context
    client_share: float = 1.0  # share of the queue that one client may fill
    stuck_after: float = 60.0  # seconds without a step after which it counts as stuck


class Engine:
    """Generates sequences with one model, on its own thread.

    All sequences share the networks and the key-value stores; a sequence owns one slot of the stores per canvas row.
    """

    def __init__(self, model: Model, limits: EngineLimits = EngineLimits(), padding_budget: int | None = None) -> None:
        self.model, self.limits = model, limits
        self.networks, self.draft_lengths = networks(model), DraftLengths(model.network.device)
        context = model.network.config.max_length
        self.positions = min(limits.positions or context, context)
        device = model.network.device.type
        self.padding_budget = _PADDING_BUDGET.get(device, 4096) if padding_budget is None else padding_budget
        self.stores: dict[tuple[str, int], KeyValueStore] = {}  # shared; the loops create them
        self.slots = KvSlots(limits.rows, self.stores)
        self.counts: Counter[str] = Counter()  # totals since the start, for telemetry
        self._queue: FairQueue[Job] = FairQueue(limits.queue, limits.client_share)
        self._active: list[Job] = []
        self._wake = threading.Condition()
        self._closing, self._stopped = False, False
        self._departure_interval = 0.05  # running mean of the seconds between two ends
        self._last_departure = self._last_step = time.monotonic()
        self._interrupter = Interrupter()
        self._thread = threading.Thread(target=self._run, name="redraft-engine", daemon=True)
        self._thread.start()

    # ---- called from other threads

    @property
    def waiting(self) -> int:
        """Number of queued sequences."""
        return len(self._queue)

    @property
    def active(self) -> int:
        """Number of sequences in the batch."""
        return len(self._active)

    @property
    def idle(self) -> bool:
        """Whether no sequence is queued or active."""
        return not self._active and not len(self._queue)

    @property
    def stuck(self) -> bool:
        """Whether there is work, and no step has ended for a long time."""
        return not self.idle and time.monotonic() - self._last_step > self.limits.stuck_after

    def submit(self, client: Hashable, jobs: list[Job]) -> None:
        """Queue all of these sequences for a client, or none.

        Raises:
            Rejected: the queue is full, or the engine is closing.
            UserError: a sequence needs more rows than the batch has, or is longer than a row; or there are more
                sequences than the queue admits of one client.
        """
        if len(jobs) > self._queue.most:
            raise UserError(
                f"The request asks for {len(jobs)} sequences; at most {self._queue.most} of one client may wait.",
                "Ask for fewer, in several requests.",
            )
        for job in jobs:
            if job.rows > self.limits.rows:
                raise UserError(
                    f"The request needs {job.rows} candidates or beams; this server runs at most {self.limits.rows}.",
                    "Ask for fewer.",
                )
            width = job.run.canvas.capacity
            if width > self.positions:
                raise UserError(
                    f"Prompt and answer have {width} tokens together; this server allows {self.positions}.",
                    "Shorten the prompt or lower max_tokens.",
                )
        with self._wake:
            if self._closing:
                raise Rejected("The server is shutting down.", _RETRY_AFTER_SHUTDOWN)
            try:
                self._queue.put(client, jobs)
            except QueueFull:
                self.counts["refused"] += len(jobs)
                seconds = max(1, round(self._departure_interval * len(self._queue)))
                limit, own = self.limits.queue, self._queue.most
                message = f"The queue is full: it holds at most {limit} sequences, and {own} of one client."
                raise Rejected(message, min(seconds, _LONGEST_RETRY)) from None
            now = time.monotonic()
            for job in jobs:
                job.queued_at = now
            self._wake.notify()

    def cancel(self, job: Job) -> None:
        """Cancel a sequence; its slots are free at the next step. A finished sequence does not change."""
        job.cancelled = True
        with self._wake:
            self._wake.notify()

    def close(self, timeout: float = 0.0) -> None:
        """Accept no more work, finish pending sequences within ``timeout`` seconds, fail the rest, end the thread.

        A computation that can't be interrupted, such as a forward pass, is left to itself after a second.
        """
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)
        self._stopped = True
        with self._wake:
            self._wake.notify()
        self._thread.join(_LONGEST_STEP)
        self._interrupter.close()
        if self._thread.is_alive():
            for job in [*self._active, *self._queue]:
                self._report_shutdown(job)

    # ---- the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while self.idle and not (self._closing or self._stopped):
                        self._wake.wait()
                    self._last_step = time.monotonic()
                    if self._stopped or self.idle:
                        break
                    abandoned, admitted = self._take_abandoned(), self._admit()
                try:
                    for job in abandoned:
                        self._fail_abandoned(job)
                    for job in admitted:
                        self._start(job)
                    self._step()
                except Exception as error:  # a bug outside of any one sequence: every client must still get an answer
                    for job in list(self._active):
                        self._fail_with(job, error)
            for job in [*self._active, *self._queue]:
                if job.generator is not None:
                    job.generator.close()
                self._report_shutdown(job)

    def _take_abandoned(self) -> list[Job]:
        """Queued and active sequences that were cancelled or are past their deadline. Queued ones leave the queue."""
        found = [*self._queue.discard(lambda job: job.abandoned)]
        return [*found, *(job for job in self._active if job.abandoned)]

    def _admit(self) -> list[Job]:
        """Move queued sequences into the batch, strictly in order: one that needs many rows holds up those behind it,
        so that it can't wait for ever."""
        admitted: list[Job] = []
        free = self.slots.free
        while (job := self._queue.head()) is not None and job.rows <= free:
            admitted.append(self._queue.take())
            free -= job.rows
        self._active += admitted
        return admitted

    def _start(self, job: Job) -> None:
        """Give a sequence its slots and run it to its first call."""
        job.started_at = time.monotonic()
        prompt, loop = job.prompt, job.run.loop
        try:
            exact = loop.method.cache is None or loop.method.cache.exact
            encoded = len(prompt) if loop.spec.network.prompt_encoder else 0
            job.slots = self.slots.acquire(job.rows, prompt, encoded, exact)
            job.run.canvas.kv_slot = torch.tensor(job.slots)
            loop.stores, loop.capacity = self.stores, (self.limits.rows, self.positions)
            job.decoder = IncrementalDecoder(
                job.run, job.span, job.stop_texts, job.top_logprobs, job.wants_frame is not None
            )
            job.generator = job.run.steps()
        except Exception as error:
            self._fail_with(job, error)
            return
        self._advance(job, None)

    def _step(self) -> None:
        """Run the pending call of every active sequence that does not rest."""
        now = time.monotonic()
        ready = [job for job in self._active if job.call is not None]
        jobs = [job for job in ready if job.rests_until <= now] or ready
        seconds: dict[int, float] = {}
        calls = [job.call for job in jobs if job.call is not None]
        for group in batching.groups(calls, self.padding_budget):
            members, parts = [jobs[i] for i in group], [calls[i] for i in group]
            try:
                logits = batching.split(self._forward(parts), parts)
            except Exception as error:
                for job in members:
                    self._fail_with(job, error)
                continue
            for job, own in zip(members, logits, strict=True):
                began = time.monotonic()
                self._advance(job, own)
                seconds[job.id] = time.monotonic() - began
        self._finish_draws(seconds)
        self._let_rest(jobs, seconds)

    def _finish_draws(self, seconds: dict[int, float]) -> None:
        """Send every sequence the tokens that it has drawn on the device; the host waits once for all of them."""
        jobs = [job for job in self._active if job.draw is not None]
        draws = [job.draw for job in jobs if job.draw is not None]
        found = download(*(part for each in draws for part in (each.token, each.conf)))
        self.draft_lengths.collect()
        for job, token, conf in zip(jobs, found[::2], found[1::2], strict=True):
            began = time.monotonic()
            self._advance(job, (token, conf))
            seconds[job.id] = seconds.get(job.id, 0.0) + time.monotonic() - began

    def _let_rest(self, jobs: list[Job], seconds: dict[int, float]) -> None:
        """A sequence that takes much longer between its passes than the others rests as long as it has worked.

        So a large constraint, for example, takes at most half of the time while others are active.
        """
        total, now = sum(seconds.values()), time.monotonic()
        for job in jobs:
            own = seconds.get(job.id, 0.0)
            others = (total - own) / max(1, len(seconds) - 1)
            if own > _SLOW and own > _SLOWER * others:
                job.rests_until = now + own

    def _forward(self, calls: list[Call]) -> Tensor:
        """One forward pass for several calls: flat logits [N, V]."""
        merged = batching.merge(calls)
        self.counts["forward_passes"] += 1
        self.counts["rows"] += len(merged.request.tokens)
        self.counts["positions"] += sum(int((call.request.positions >= 0).sum()) for call in calls)
        self.counts["padding"] += merged.request.tokens.numel() - sum(call.request.tokens.numel() for call in calls)
        if merged.store is not None:
            self.counts["reused"] += int(merged.store.visible_below.sum())
        with self.draft_lengths.timed(merged.request):
            return self.networks[merged.request.network](merged.request, merged.store)

    def _advance(self, job: Job, sent: Tensor | tuple[Tensor, ...] | None) -> None:
        """Send a sequence its logits [N, V], or its drawn tokens and their log-probabilities ([N], [N]), and run it to
        its next call or draw, or to its end."""
        generator = job.generator
        assert generator is not None and job.decoder is not None
        job.call = job.draw = None
        self.draft_lengths.set(job.run, job.drafting, len(self._active))
        try:
            while True:
                found = self._interrupter.run(
                    partial(generator.send, sent),
                    lambda: self._stopped or job.abandoned,
                )
                if isinstance(found, Call):
                    job.call = found
                    return
                if isinstance(found, Draw):
                    job.draw = found
                    return
                sent = None
                self._report(job, job.decoder, found)
                if job.decoder.stopped:
                    generator.close()
                    break
        except StopIteration:
            pass
        except Interrupted:
            job.call = None
            if not self._stopped:
                self._fail_abandoned(job)
            return
        except Exception as error:
            self._fail_with(job, error)
            return
        self._finish(job, job.decoder)

    def _report(self, job: Job, decoder: IncrementalDecoder, step: Step) -> None:
        """Report what a step made final."""
        text = decoder.add(step)
        if text and not job.first_text_at:
            job.first_text_at = time.monotonic()
        frame = self._frame(job, decoder) if job.wants_frame is not None and job.wants_frame() else None
        if job.streams and (text or frame is not None):
            job.on_event(Progress(job, text, frame))

    def _frame(self, job: Job, decoder: IncrementalDecoder) -> dict[str, object]:
        """The current canvas, with the seconds of generation so far."""
        now = time.monotonic()
        frame = {"seconds": round(now - job.started_at - job.frame_seconds, 6), **decoder.frame()}
        job.frame_seconds += time.monotonic() - now
        return frame

    def _finish(self, job: Job, decoder: IncrementalDecoder) -> None:
        reported = len(decoder.text) if job.streams else 0
        try:
            result = decoder.finish()
            frame = self._frame(job, decoder) if job.wants_frame is not None else None
        except Exception as error:
            self._fail_with(job, error)
            return
        self._remove(job)
        self.counts["finished"] += 1
        self.counts["tokens"] += result.new_tokens
        job.first_text_at = job.first_text_at or job.ended_at
        job.on_event(Finished(job, result.text[reported:], result, frame))

    def _fail_with(self, job: Job, error: Exception) -> None:
        """Fail a sequence after an exception: a ``UserError`` is the client's mistake, anything else is a bug."""
        if isinstance(error, UserError):
            self._fail(job, RequestOutcome.INVALID_REQUEST, str(error))
        else:
            _LOG.error("generation of sequence %d failed", job.id, exc_info=error)
            message = "The generation failed because of an internal server error. The server's log has the details."
            self._fail(job, RequestOutcome.INTERNAL_ERROR, message)

    def _fail_abandoned(self, job: Job) -> None:
        if job.cancelled:
            self._fail(job, RequestOutcome.CANCELLED, "The client closed the connection.")
        else:
            self._fail(job, RequestOutcome.DEADLINE_EXCEEDED, "The request was not finished before its deadline.")

    def _fail(self, job: Job, outcome: RequestOutcome, message: str) -> None:
        if job.generator is not None:
            job.generator.close()
        self._remove(job)
        self.counts[outcome.value] += 1
        job.on_event(Failed(job, outcome, message))

    def _report_shutdown(self, job: Job) -> None:
        self.counts[RequestOutcome.SHUTDOWN.value] += 1
        job.on_event(Failed(job, RequestOutcome.SHUTDOWN, "The server was shut down before this request was finished."))

    def _remove(self, job: Job) -> None:
        """Take a sequence out of the batch and free its slots."""
        job.ended_at = time.monotonic()
        job.call = job.draw = None
        if job in self._active:
            self._active.remove(job)
            self.slots.release(job.slots)
            interval = job.ended_at - self._last_departure
            self._departure_interval = 0.9 * self._departure_interval + 0.1 * interval
            self._last_departure = job.ended_at
