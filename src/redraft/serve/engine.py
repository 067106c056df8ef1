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

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.generation.loop import Call
from redraft.generation.sampling import Draw
from redraft.model import Model
from redraft.models.parts.store import KeyValueStore
from redraft.runtime import download
from redraft.serve import batching
from redraft.serve.incremental_text import IncrementalDecoder
from redraft.serve.jobs import Failed, Finished, Job, Progress, Rejected, RequestOutcome
from redraft.serve.kv_slots import KvSlots
from redraft.serve.scheduler import FairQueue, QueueFull
from redraft.types import Step

_LOG = logging.getLogger("redraft.serve")
# Positions of padding that cost less than a forward pass of their own: see benchmarks/RESULTS.md.
_PADDING_BUDGET = {"cpu": 48, "cuda": 4096}
_RETRY_AFTER_SHUTDOWN, _LONGEST_RETRY = 5, 60  # seconds


@dataclass(frozen=True)
class EngineLimits:
    """How much work an engine accepts."""

    rows: int = 32  # canvas rows in a batch; a sequence with several candidate lengths or beams needs several
    queue: int = 256  # waiting sequences
    positions: int = 0  # longest row; 0: the model's context


class Engine:
    """Generates sequences with one model, on its own thread.

    All sequences share the networks and the key-value stores; a sequence owns one slot of the stores per canvas row.
    """

    def __init__(self, model: Model, limits: EngineLimits = EngineLimits(), padding_budget: int | None = None) -> None:
        self.model, self.limits = model, limits
        self.networks = {"main": model.inference_network()}
        if model.drafter is not None:
            self.networks["drafter"] = model.drafter.inference_network()
        context = model.network.config.max_length
        self.positions = min(limits.positions or context, context)
        device = model.network.device.type
        self.padding_budget = _PADDING_BUDGET.get(device, 4096) if padding_budget is None else padding_budget
        self.stores: dict[tuple[str, int], KeyValueStore] = {}  # shared; the loops create them
        self.slots = KvSlots(limits.rows, self.stores)
        self.counts: Counter[str] = Counter()  # totals since the start, for telemetry
        self._queue: FairQueue[Job] = FairQueue(limits.queue)
        self._active: list[Job] = []
        self._wake = threading.Condition()
        self._closing, self._stopped = False, False
        self._departure_interval = 0.05  # running mean of the seconds between two ends
        self._last_departure = time.monotonic()
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

    def submit(self, client: Hashable, jobs: list[Job]) -> None:
        """Queue all of these sequences for a client, or none.

        Raises:
            Rejected: the queue is full, or the engine is closing.
            UserError: a sequence needs more rows than the batch has, or is longer than a row.
        """
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
                message = f"The queue is full: it holds at most {self.limits.queue} sequences."
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
        """Accept no more work, finish pending sequences within ``timeout`` seconds, fail the rest, end the thread."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join(timeout)
        self._stopped = True
        with self._wake:
            self._wake.notify()
        self._thread.join()

    # ---- the engine's thread

    def _run(self) -> None:
        with torch.inference_mode():
            while True:
                with self._wake:
                    while self.idle and not (self._closing or self._stopped):
                        self._wake.wait()
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
                self._fail(job, RequestOutcome.SHUTDOWN, "The server was shut down before this request was finished.")

    def _take_abandoned(self) -> list[Job]:
        """Queued and active sequences that were cancelled or are past their deadline. Queued ones leave the queue."""
        now = time.monotonic()

        def abandoned(job: Job) -> bool:
            return job.cancelled or job.deadline < now

        return [*self._queue.discard(abandoned), *filter(abandoned, self._active)]

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
        """Run the pending call of every active sequence."""
        jobs = [job for job in self._active if job.call is not None]
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
                self._advance(job, own)
        self._finish_draws()

    def _finish_draws(self) -> None:
        """Send every sequence the tokens that it has drawn on the device; the host waits once for all of them."""
        jobs = [job for job in self._active if job.draw is not None]
        draws = [job.draw for job in jobs if job.draw is not None]
        found = download(*(part for each in draws for part in (each.token, each.conf)))
        for job, token, conf in zip(jobs, found[::2], found[1::2], strict=True):
            self._advance(job, (token, conf))

    def _forward(self, calls: list[Call]) -> Tensor:
        """One forward pass for several calls: flat logits [N, V]."""
        merged = batching.merge(calls)
        self.counts["forward_passes"] += 1
        self.counts["rows"] += len(merged.request.tokens)
        self.counts["positions"] += sum(int((call.request.positions >= 0).sum()) for call in calls)
        self.counts["padding"] += merged.request.tokens.numel() - sum(call.request.tokens.numel() for call in calls)
        if merged.store is not None:
            self.counts["reused"] += int(merged.store.visible_below.sum())
        return self.networks[merged.request.network](merged.request, merged.store)

    def _advance(self, job: Job, sent: Tensor | tuple[Tensor, ...] | None) -> None:
        """Send a sequence its logits [N, V], or its drawn tokens and their log-probabilities ([N], [N]), and run it to
        its next call or draw, or to its end."""
        assert job.generator is not None and job.decoder is not None
        job.call = job.draw = None
        try:
            while True:
                found = job.generator.send(sent)
                if isinstance(found, Call):
                    job.call = found
                    return
                if isinstance(found, Draw):
                    job.draw = found
                    return
                sent = None
                self._report(job, job.decoder, found)
                if job.decoder.stopped:
                    job.generator.close()
                    break
        except StopIteration:
            pass
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
