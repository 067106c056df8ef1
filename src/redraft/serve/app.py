"""The HTTP interface: OpenAI's routes, infilling, health, metrics, and the page."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sse_starlette import EventSourceResponse
from starlette.exceptions import HTTPException

from redraft import __version__
from redraft.errors import UserError
from redraft.serve import requests, schema, wire
from redraft.serve.engine import Done, Engine, Event, Failed, Job, Limits, Progress, Refused
from redraft.serve.guard import Guard
from redraft.serve.mailbox import Mailbox
from redraft.serve.reading import Text
from redraft.serve.settings import Settings
from redraft.serve.shelf import Entry, Shelf
from redraft.serve.watching import Metrics, logger

STATIC = Path(__file__).parent / "static"
_ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"model": schema.ApiErrorBody, "description": what}
    for code, what in {
        400: "The request can't be honoured; the message says why",
        401: "No valid API key",
        404: "No such model",
        408: "The deadline passed",
        413: "The request is too large",
        421: "Not addressed to localhost",
        429: "The queue is full; see Retry-After",
        503: "The server is shutting down; see Retry-After",
    }.items()
}
# What became of a text -> status and type of error.
_FATES = {
    "mistake": (400, "invalid_request_error"),
    "late": (408, "timeout_error"),
    "closed": (503, "server_error"),
    "cancelled": (499, "cancelled"),
    "bug": (500, "server_error"),
}


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, wait: int = 0) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.wait = status, message, kind, code, wait

    def body(self) -> dict[str, Any]:
        return wire.failure(self.message, self.kind, self.code)

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(self.wait)} if self.wait else None
        return JSONResponse(self.body(), self.status, headers)


@dataclass
class Service:
    """What the routes share."""

    settings: Settings
    shelf: Shelf
    metrics: Metrics
    draining: bool = False
    _seeds: int = 0

    def fill_seed(self, request: schema._Request) -> None:
        """Where the operator wants every run the same: requests without a seed get the next one."""
        if request.seed is None and self.settings.seed is not None:
            request.seed = self.settings.seed + self._seeds
            self._seeds += 1


def create_app(settings: Settings, ready: Callable[[], None] | None = None) -> FastAPI:
    """The application. Models are loaded when it starts.

    Args:
        ready: called when they are.
    Raises:
        UserError: a model that is not there.
    """
    limits = Limits(settings.batch, settings.queue)
    shelf = Shelf(settings.models, settings.device, limits, getattr(torch, settings.dtype))
    service = Service(settings, shelf, Metrics(shelf))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for entry in shelf.entries.values():
            await shelf.open(entry)
        keeper = asyncio.create_task(_keep(service)) if settings.idle else None
        if ready is not None:
            ready()
        yield
        service.draining = True
        if keeper is not None:
            keeper.cancel()
        await shelf.close(settings.patience)

    app = FastAPI(
        title="redraft",
        version=__version__,
        description="Diffusion and autoregressive language models behind OpenAI's interface.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.exception_handlers[RequestValidationError] = _invalid
    app.exception_handlers[HTTPException] = _no_route
    app.exception_handlers[Refusal] = lambda _, error: error.response()
    app.exception_handlers[Exception] = _bug
    app.exception_handlers[UserError] = lambda _, error: Refusal(400, str(error), "invalid_request_error").response()
    _routes(app, service)
    if settings.cors:
        from fastapi.middleware.cors import CORSMiddleware

        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    app.add_middleware(Guard, settings=settings)
    return app


def _routes(app: FastAPI, service: Service) -> None:
    shelf = service.shelf

    @app.get("/healthz", tags=["operation"])
    async def healthz() -> JSONResponse:
        """200 while requests are taken, 503 while the server shuts down."""
        status = "draining" if service.draining else "ok"
        return JSONResponse({"status": status, "version": __version__}, 503 if service.draining else 200)

    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """The models served here, with what each can do."""
        return {"object": "list", "data": [entry.describe() for entry in shelf.entries.values()]}

    @app.get("/v1/models/{name}", tags=["models"], responses={404: _ERRORS[404]})
    async def model(name: str) -> dict[str, Any]:
        """One of them."""
        return _entry(shelf, name).describe()

    @app.post("/v1/completions", tags=["text"], responses=_ERRORS)
    async def completions(body: schema.CompletionRequest, http: Request) -> Any:
        """Continue a prompt, or with ``suffix`` write what stands between the two."""

        def made(entry: Entry) -> wire.Voice:
            return wire.Completion(body, requests.completion(body, entry.model, service.settings))

        return await Answer(service, body, http).give(made)

    @app.post("/v1/chat/completions", tags=["text"], responses=_ERRORS)
    async def chat(body: schema.ChatRequest, http: Request) -> Any:
        """Answer a conversation."""

        def made(entry: Entry) -> wire.Voice:
            return wire.Chat(body, requests.conversation(body, entry.model, entry.template, service.settings))

        return await Answer(service, body, http).give(made)

    @app.post("/v1/infill", tags=["text"], responses=_ERRORS)
    async def infill(body: schema.InfillRequest, http: Request) -> Any:
        """Fill the holes of a text, seeing both sides of each."""

        def made(entry: Entry) -> wire.Voice:
            return wire.Infill(body, requests.infill(body, entry.model, service.settings))

        return await Answer(service, body, http).give(made)

    @app.api_route("/v1/embeddings", methods=["GET", "POST"], include_in_schema=False)
    async def embeddings() -> None:
        raise Refusal(404, "embeddings are not offered: these models write text", "invalid_request_error", "not_found")

    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")


def _entry(shelf: Shelf, name: str) -> Entry:
    try:
        return shelf.find(name)
    except UserError as error:
        raise Refusal(404, str(error), "invalid_request_error", "model_not_found") from None


@dataclass
class Answer:
    """One request on its way through the engine."""

    service: Service
    request: schema._Request
    http: Request
    began: float = field(default_factory=time.monotonic)
    jobs: list[Job] = field(default_factory=list)
    results: dict[int, Text] = field(default_factory=dict)
    engine: Engine | None = None
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")

    async def give(self, made: Callable[[Entry], wire.Voice]) -> Response:
        """Write what was asked for and answer, whole or as a stream.

        Raises:
            Refusal: the answer is an error.
        """
        status = 500
        try:
            response = await self._give(made)
            status = response.status_code
            return response
        except Refusal as error:
            status = error.status
            raise
        except UserError:
            status = 400
            raise
        except asyncio.CancelledError:
            status = 499
            raise
        finally:
            if not (self.request.stream and status == 200):
                self._note(status)

    async def _give(self, made: Callable[[Entry], wire.Voice]) -> Response:
        service = self.service
        entry = _entry(service.shelf, self.request.model)
        self.engine = await service.shelf.open(entry)
        service.fill_seed(self.request)
        own = self.request.redraft.deadline or service.settings.deadline
        deadline = self.began + min(own, service.settings.deadline)
        mailbox = Mailbox()

        def make() -> tuple[wire.Voice, list[Job]]:
            voice = made(entry)
            return voice, voice.wanted.jobs(mailbox, self.request, deadline)

        voice, self.jobs = await asyncio.to_thread(make)
        voice.id = self.id
        if service.draining:
            raise Refusal(503, "the server is shutting down", "server_error", wait=5)
        try:
            self.engine.submit(self._client(), self.jobs)
        except Refused as error:
            status = 503 if service.draining else 429
            raise Refusal(status, error.why, "rate_limit_error", "queue_full", error.wait) from None
        gone = asyncio.create_task(self._gone())
        try:
            if not self.request.stream:
                return await self._whole(voice, mailbox, gone)
            first = await self._next(mailbox, gone)  # only then is it known whether the answer is an error
            if isinstance(first, Failed):
                raise self._refusal(first)
        except BaseException:
            self._let_go()
            raise
        finally:
            gone.cancel()
        return EventSourceResponse(
            self._stream(voice, mailbox, first),
            sep="\n",
            headers={"X-Request-Id": self.id},
            shutdown_grace_period=service.settings.patience,
        )

    async def _whole(self, voice: wire.Voice, mailbox: Mailbox, gone: asyncio.Task[None]) -> Response:
        while len(self.results) < len(self.jobs):
            event = await self._next(mailbox, gone)
            if isinstance(event, Failed):
                raise self._refusal(event)
            self._keep(event)
        return JSONResponse(voice.whole(self._texts()), headers={"X-Request-Id": self.id})

    async def _stream(self, voice: wire.Voice, mailbox: Mailbox, event: Event) -> AsyncIterator[dict[str, str]]:
        status = 499
        try:
            for chunk in voice.opening():
                yield _data(chunk)
            while True:
                number = self.jobs.index(event.job)
                if isinstance(event, Failed):
                    status = _FATES[event.kind][0]
                    yield _data(self._refusal(event).body())
                    return
                self._keep(event)
                if isinstance(event, Done):
                    yield _data(voice.last(number, event.text, event.result, event.frame))
                else:
                    yield _data(voice.chunk(number, event.text, event.frame))
                if len(self.results) == len(self.jobs):
                    break
                event = await mailbox.get()
            for chunk in voice.closing(self._texts()):
                yield _data(chunk)
            status = 200
            yield {"data": "[DONE]"}
        finally:
            self._let_go()
            self._note(status)

    def _keep(self, event: Event) -> None:
        if isinstance(event, Done):
            self.results[self.jobs.index(event.job)] = event.result
        else:
            assert isinstance(event, Progress)

    def _texts(self) -> list[Text]:
        return [self.results[number] for number in range(len(self.jobs))]

    async def _next(self, mailbox: Mailbox, gone: asyncio.Task[None]) -> Event:
        """The next event, or a refusal when the client has closed the connection."""
        getting = asyncio.create_task(mailbox.get())
        await asyncio.wait({getting, gone}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        getting.cancel()
        raise Refusal(499, "the client closed the connection", "cancelled")

    async def _gone(self) -> None:
        """Returns when the client closes the connection."""
        while (await self.http.receive())["type"] != "http.disconnect":
            pass

    def _let_go(self) -> None:
        """Nobody waits any more: free the places of what is not finished."""
        for number, job in enumerate(self.jobs):
            if number not in self.results and self.engine is not None:
                self.engine.cancel(job)

    def _client(self) -> object:
        """Who takes turns with whom: a key, else an address."""
        key = self.http.scope.get("client_key")
        return key if key is not None else self.http.client.host if self.http.client else ""

    def _refusal(self, event: Failed) -> Refusal:
        status, kind = _FATES[event.kind]
        return Refusal(status, event.why, kind)

    def _note(self, status: int) -> None:
        """One line for the log, and the metrics."""
        now, route = time.monotonic(), self.http.url.path
        self.service.metrics.requests.labels(route, str(status)).inc()
        self.service.metrics.seconds.labels(route).observe(now - self.began)
        firsts = [job.first for job in self.jobs if job.first]
        if firsts:
            self.service.metrics.first.labels(route).observe(max(0.0, min(firsts) - self.began))
        line: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "route": route,
            "model": self.request.model,
            "status": status,
            "stream": bool(self.request.stream),
            "texts": len(self.jobs),
            "prompt_tokens": sum(len(job.prompt) for job in self.jobs),
            "completion_tokens": sum(text.written for text in self.results.values()),
            "nfe": sum(text.nfe for text in self.results.values()),
            "seconds": round(now - self.began, 4),
        }
        begun = [job.begun for job in self.jobs if job.begun]
        if begun:
            line["waited"] = round(max(begun) - min(job.queued for job in self.jobs), 4)
        if firsts:
            line["first_text"] = round(min(firsts) - self.began, 4)
        if self.service.settings.log_text:
            line["request"] = self.request.model_dump(exclude_none=True, by_alias=True)
            line["answers"] = [text.text for text in self.results.values()]
        logger().info(line)


def _data(chunk: dict[str, Any]) -> dict[str, str]:
    return {"data": json.dumps(chunk, ensure_ascii=False, separators=(",", ":"))}


async def _keep(service: Service) -> None:
    """Unload models that nobody uses."""
    while True:
        await asyncio.sleep(max(1.0, service.settings.idle / 4))
        for name in await service.shelf.put_away(service.settings.idle):
            logger().info({"event": "unloaded", "model": name})


async def _invalid(_: Request, error: Any) -> JSONResponse:
    """What is wrong with a body, in OpenAI's shape: the first mistake and where it is."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        message, place = f"the body is not valid JSON: {first.get('ctx', {}).get('error', message)}", []
    elif not place and first["type"] in ("missing", "model_attributes_type"):
        message = "the body must be a JSON object, sent as Content-Type: application/json"
    elif place and first["type"] != "value_error":
        message = f"{'.'.join(place)}: {message[0].lower()}{message[1:]}"
    body = wire.failure(message, "invalid_request_error", param=place[0] if place else None)
    return JSONResponse(body, 400)


async def _bug(_: Request, error: Exception) -> JSONResponse:
    """An error of ours, in OpenAI's shape; its traceback is for the log alone."""
    logger().error("an answer failed", exc_info=error)
    return JSONResponse(wire.failure("an error of the server, see its log", "server_error"), 500)


async def _no_route(request: Request, error: Any) -> JSONResponse:
    status, path = error.status_code, request.url.path
    message = str(error.detail)
    if status in (404, 405):  # files of the page answer for every path that no route takes
        known = {getattr(route, "path", "") for route in request.app.routes}
        status = 405 if path in known and request.method != "HEAD" else 404
    if status == 404:
        message = f"there is no {request.method} {path} here"
    elif status == 405:
        message = f"{path} does not take {request.method}"
    body = wire.failure(message, "invalid_request_error")
    return JSONResponse(body, status, getattr(error, "headers", None))
