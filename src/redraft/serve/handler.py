"""One generation request from its body to its response, complete or streamed, with its log line and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import Response
from sse_starlette import EventSourceResponse

from redraft.serve import requests, schema
from redraft.serve.engine import Engine
from redraft.serve.errors import CLIENT_CLOSED_REQUEST, ApiError
from redraft.serve.event_queue import EventQueue
from redraft.serve.exchange import Exchange
from redraft.serve.incremental_text import GeneratedText
from redraft.serve.jobs import Event, Failed, Finished, Job, Rejected
from redraft.serve.model_pool import ModelEntry
from redraft.serve.responses import ResponseBuilder, to_json

MakeBuilder = Callable[[ModelEntry, requests.Checkpoint], ResponseBuilder]


@dataclass
class RequestHandler(Exchange[schema._Request]):
    """Handles one request: submits its jobs to the engine and turns their events into a response."""

    jobs: list[Job] = field(default_factory=list)
    results: dict[int, GeneratedText] = field(default_factory=dict)  # by index of the job
    events: EventQueue = field(default_factory=EventQueue)
    engine: Engine | None = None
    automaton: object = None  # the compiled constraint, which is known as long as it is held

    async def respond(self, make_builder: MakeBuilder) -> Response:
        """Generate what the request asks for.

        Args:
            make_builder: from the model, and a checkpoint to be called before every forward pass, to the builder of
                the response. It runs in a thread.
        Raises:
            ApiError: the response is an error.
        """
        return await self.recorded(self._respond(make_builder))

    async def _respond(self, make_builder: MakeBuilder) -> Response:
        disconnected = asyncio.create_task(self.disconnected())
        try:
            builder = await self.while_wanted(self._submit(make_builder), disconnected)
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

    async def _submit(self, make_builder: MakeBuilder) -> ResponseBuilder:
        """Load the model, compile the constraint, make the jobs and queue them."""
        service, request = self.service, self.request
        entry = service.find(request.model)
        self.engine = await service.pool.open(entry)
        service.fill_seed(request)
        constraint = requests.constraint_of(request, entry.model, entry.chat_template)
        if constraint:
            self.automaton = await service.compilers.compile(self.client(), entry.model.tokenizer, constraint)

        def make() -> tuple[ResponseBuilder, list[Job]]:
            builder = make_builder(entry, self.checkpoint)
            return builder, builder.generation.jobs(self.events, request, self.deadline)

        if isinstance(request, schema.InfillRequest) or vars(request).get("suffix") is not None:
            async with service.planning.of(self.client()):  # measuring holes takes forward passes
                builder, self.jobs = await asyncio.get_running_loop().run_in_executor(service.planners, make)
        else:
            builder, self.jobs = await asyncio.to_thread(make)
        builder.id = self.id
        try:
            self.engine.submit(self.client(), self.jobs)
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
            self.record(status)

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

    def _cancel_unfinished(self) -> None:
        """Free the slots of sequences that are not finished."""
        for index, job in enumerate(self.jobs):
            if index not in self.results and self.engine is not None:
                self.engine.cancel(job)

    def measured(self) -> dict[str, Any]:
        """Numbers of the log line."""
        first_texts = [job.first_text_at for job in self.jobs if job.first_text_at]
        started = [job.started_at for job in self.jobs if job.started_at]
        line: dict[str, Any] = {
            "stream": self.request.streams,
            "sequences": len(self.jobs),
            "prompt_tokens": sum(len(job.prompt) for job in self.jobs),
            "completion_tokens": sum(text.new_tokens for text in self.results.values()),
            "nfe": sum(text.nfe for text in self.results.values()),
        }
        if started:
            line["queue_seconds"] = round(max(started) - min(job.queued_at for job in self.jobs), 4)
        if first_texts:
            seconds = min(first_texts) - self.started_at
            self.service.metrics.first_text.labels(self.http.url.path).observe(max(0.0, seconds))
            line["first_text_seconds"] = round(seconds, 4)
        return line

    def answers(self) -> list[Any]:
        """The generated texts."""
        return [text.text for text in self.results.values()]


def _data(chunk: dict[str, Any]) -> dict[str, str]:
    return {"data": to_json(chunk)}
