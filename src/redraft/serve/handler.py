"""One generation request from its body to its response, complete or streamed, with its log line and metrics."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request, Response
from sse_starlette import EventSourceResponse

from redraft.errors import UserError
from redraft.serve import requests, schema
from redraft.serve.compilers import Compilers
from redraft.serve.config import ServerConfig
from redraft.serve.engine import Engine
from redraft.serve.errors import CLIENT_CLOSED_REQUEST, ApiError
from redraft.serve.event_queue import EventQueue
from redraft.serve.incremental_text import GeneratedText
from redraft.serve.jobs import Event, Failed, Finished, Job, Rejected
from redraft.serve.model_pool import ModelEntry, ModelPool
from redraft.serve.responses import ResponseBuilder, to_json
from redraft.serve.scheduler import FairSlots
from redraft.serve.telemetry import Metrics, logger

T = TypeVar("T")
MakeBuilder = Callable[[ModelEntry, requests.Checkpoint], ResponseBuilder]
_RETRY_AFTER = 5  # seconds after which another server may answer
_PLANNERS = 2  # requests whose holes are measured at the same time


@dataclass
class Service:
    """State that all requests share."""

    config: ServerConfig
    pool: ModelPool
    metrics: Metrics
    compilers: Compilers
    planning: FairSlots = field(default_factory=lambda: FairSlots(_PLANNERS))
    planners: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(_PLANNERS, "redraft-planner"))
    draining: bool = False  # shutting down: no new requests
    pending: int = 0  # requests under way
    stopped: asyncio.Event = field(default_factory=asyncio.Event)  # requests that are being prepared are given up
    _seeded: int = 0  # requests that got a seed from the configuration

    def find(self, name: str) -> ModelEntry:
        """The model with this name.

        Raises:
            ApiError: this server has no such model.
        """
        try:
            return self.pool.find(name)
        except UserError as error:
            raise ApiError(404, str(error), "invalid_request_error", "model_not_found") from None

    def fill_seed(self, request: schema._Request) -> None:
        """With a configured seed, give the next one to a request that sends none, so that runs are reproducible."""
        if request.seed is None and self.config.seed is not None:
            request.seed = self.config.seed + self._seeded
            self._seeded += 1


@dataclass
class RequestHandler:
    """Handles one request: submits its jobs to the engine and turns their events into a response."""

    service: Service
    request: schema._Request
    http: Request
    started_at: float = field(default_factory=time.monotonic)
    jobs: list[Job] = field(default_factory=list)
    results: dict[int, GeneratedText] = field(default_factory=dict)  # by index of the job
    events: EventQueue = field(default_factory=EventQueue)
    engine: Engine | None = None
    automaton: object = None  # the compiled constraint, which is known as long as it is held
    wanted: bool = True  # somebody waits for the preparation of the request
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")

    async def respond(self, make_builder: MakeBuilder) -> Response:
        """Generate what the request asks for.

        Args:
            make_builder: from the model, and a checkpoint to be called before every forward pass, to the builder of
                the response. It runs in a thread.
        Raises:
            ApiError: the response is an error.
        """
        status = 500
        try:
            response = await self._respond(make_builder)
            status = response.status_code
            return response
        except ApiError as error:
            status = error.status
            raise
        except UserError:
            status = 400
            raise
        except asyncio.CancelledError:
            status = CLIENT_CLOSED_REQUEST
            raise
        finally:
            if not (self.request.stream and status == 200):  # a stream is recorded at its end
                self._record(status)

    async def _respond(self, make_builder: MakeBuilder) -> Response:
        if self.service.draining:
            raise ApiError(503, "The server is shutting down.", "server_error", retry_after=_RETRY_AFTER)
        disconnected = asyncio.create_task(self._disconnected())
        try:
            builder = await self._while_wanted(self._submit(make_builder), disconnected)
            if not self.request.stream:
                return await self._complete(builder, disconnected)
            # The status of the response is only known after the first event.
            first = await self._next_event(disconnected)
            if isinstance(first, Failed):
                raise ApiError.of(first)
        except BaseException:
            self._cancel_unfinished()
            raise
        finally:
            disconnected.cancel()
        return EventSourceResponse(
            self._stream(builder, first),
            sep="\n",
            headers={"X-Request-Id": self.id},
            shutdown_grace_period=self.service.config.shutdown_timeout,
        )

    @property
    def deadline(self) -> float:
        """When the request is given up, as ``time.monotonic()`` counts."""
        longest = self.service.config.deadline
        return self.started_at + min(self.request.redraft.deadline or longest, longest)

    async def _while_wanted(self, work: Coroutine[Any, Any, T], disconnected: asyncio.Task[None]) -> T:
        """The result of some work, which is cancelled when nobody waits for it any more.

        Raises:
            ApiError: the deadline passed, the client closed the connection, or the server ends.
        """
        task, stopped = asyncio.create_task(work), asyncio.create_task(self.service.stopped.wait())
        try:
            left = max(0.0, self.deadline - time.monotonic())
            await asyncio.wait({task, disconnected, stopped}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if stopped.done():
                message = "The server was shut down before this request was finished."
                raise ApiError(503, message, "server_error", retry_after=_RETRY_AFTER)
            if disconnected.done():
                raise ApiError(CLIENT_CLOSED_REQUEST, "The client closed the connection.", "cancelled")
            raise ApiError.late()
        finally:
            self.wanted = task.done()
            task.cancel()
            stopped.cancel()

    def _checkpoint(self) -> None:
        """End the preparation of a request that nobody waits for."""
        if not self.wanted or time.monotonic() > self.deadline:
            raise ApiError.late()

    async def _submit(self, make_builder: MakeBuilder) -> ResponseBuilder:
        """Load the model, compile the constraint, make the jobs and queue them."""
        service, request = self.service, self.request
        entry = service.find(request.model)
        self.engine = await service.pool.open(entry)
        service.fill_seed(request)
        constraint = requests.constraint_of(request, entry.model)
        if constraint:
            self.automaton = await service.compilers.compile(self._client(), entry.model.tokenizer, constraint)

        def make() -> tuple[ResponseBuilder, list[Job]]:
            builder = make_builder(entry, self._checkpoint)
            return builder, builder.generation.jobs(self.events, request, self.deadline)

        if isinstance(request, schema.InfillRequest) or vars(request).get("suffix") is not None:
            async with service.planning.of(self._client()):  # measuring holes takes forward passes
                builder, self.jobs = await asyncio.get_running_loop().run_in_executor(service.planners, make)
        else:
            builder, self.jobs = await asyncio.to_thread(make)
        builder.id = self.id
        try:
            self.engine.submit(self._client(), self.jobs)
        except Rejected as error:
            status = 503 if service.draining else 429
            raise ApiError(status, error.message, "rate_limit_error", "queue_full", error.retry_after) from None
        return builder

    async def _complete(self, builder: ResponseBuilder, disconnected: asyncio.Task[None]) -> Response:
        while len(self.results) < len(self.jobs):
            event = await self._next_event(disconnected)
            if isinstance(event, Failed):
                raise ApiError.of(event)
            self._collect(event)
        body = to_json(builder.complete(self._texts()))
        return Response(body, media_type="application/json", headers={"X-Request-Id": self.id})

    async def _stream(self, builder: ResponseBuilder, event: Event) -> AsyncIterator[dict[str, str]]:
        """Server-sent events, beginning with the chunk for ``event``."""
        status = CLIENT_CLOSED_REQUEST
        try:
            for chunk in builder.first_chunks():
                yield _data(chunk)
            while True:
                index = self.jobs.index(event.job)
                if isinstance(event, Failed):
                    error = ApiError.of(event)
                    status = error.status
                    yield _data(error.body())
                    return
                self._collect(event)
                if isinstance(event, Finished):
                    yield _data(builder.last_chunk(index, event.text, event.result, event.frame))
                else:
                    yield _data(builder.chunk(index, event.text, event.frame))
                if len(self.results) == len(self.jobs):
                    break
                event = await self.events.get()
            for chunk in builder.closing_chunks(self._texts()):
                yield _data(chunk)
            status = 200
            yield {"data": "[DONE]"}
        finally:
            self._cancel_unfinished()
            self._record(status)

    def _collect(self, event: Event) -> None:
        if isinstance(event, Finished):
            self.results[self.jobs.index(event.job)] = event.result

    def _texts(self) -> list[GeneratedText]:
        return [self.results[index] for index in range(len(self.jobs))]

    async def _next_event(self, disconnected: asyncio.Task[None]) -> Event:
        """The next event.

        Raises:
            ApiError: the client closed the connection first.
        """
        getting = asyncio.create_task(self.events.get())
        await asyncio.wait({getting, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        getting.cancel()
        raise ApiError(CLIENT_CLOSED_REQUEST, "The client closed the connection.", "cancelled")

    async def _disconnected(self) -> None:
        """Return when the client closes the connection."""
        while (await self.http.receive())["type"] != "http.disconnect":
            pass

    def _cancel_unfinished(self) -> None:
        """Free the slots of sequences that are not finished."""
        for index, job in enumerate(self.jobs):
            if index not in self.results and self.engine is not None:
                self.engine.cancel(job)

    def _client(self) -> object:
        """The client for the queue's round robin: an API key, else an address."""
        key = self.http.scope.get("client_key")
        return key if key is not None else self.http.client.host if self.http.client else ""

    def _record(self, status: int) -> None:
        """Update the metrics and write the log line of the request."""
        now, route, metrics = time.monotonic(), self.http.url.path, self.service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(now - self.started_at)
        first_texts = [job.first_text_at for job in self.jobs if job.first_text_at]
        started = [job.started_at for job in self.jobs if job.started_at]
        line: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "route": route,
            "model": self.request.model,
            "status": status,
            "stream": bool(self.request.stream),
            "sequences": len(self.jobs),
            "prompt_tokens": sum(len(job.prompt) for job in self.jobs),
            "completion_tokens": sum(text.new_tokens for text in self.results.values()),
            "nfe": sum(text.nfe for text in self.results.values()),
            "seconds": round(now - self.started_at, 4),
        }
        if started:
            line["queue_seconds"] = round(max(started) - min(job.queued_at for job in self.jobs), 4)
        if first_texts:
            seconds = min(first_texts) - self.started_at
            metrics.first_text.labels(route).observe(max(0.0, seconds))
            line["first_text_seconds"] = round(seconds, 4)
        if self.service.config.log_text:
            line["request"] = self.request.model_dump(exclude_none=True, by_alias=True)
            line["answers"] = [text.text for text in self.results.values()]
        logger().info(line)


def _data(chunk: dict[str, Any]) -> dict[str, str]:
    return {"data": to_json(chunk)}
