"""One request and its client: deadline, disconnection, log line and metrics."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastapi import Request, Response

from redraft.errors import UserError
from redraft.serve import schema
from redraft.serve.compilers import Compilers
from redraft.serve.config import ServerConfig
from redraft.serve.errors import CLIENT_CLOSED_REQUEST, ApiError
from redraft.serve.model_pool import ModelEntry, ModelPool
from redraft.serve.scheduler import FairSlots
from redraft.serve.telemetry import Metrics, logger

T = TypeVar("T")
B = TypeVar("B", bound=schema.Body)
RETRY_AFTER = 5  # seconds after which another server may answer
_PLANNERS = 2  # requests that run forward passes outside of the engine at the same time


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

    async def stop(self) -> None:
        """Give up the requests under way: each gets its 503."""
        self.stopped.set()
        await asyncio.sleep(0)  # before the compilations are cancelled
        await self.compilers.close()
        await self.pool.close(0.0)

    def fill_seed(self, request: schema._Request) -> None:
        """With a configured seed, give the next one to a request that sends none, so that runs are reproducible."""
        if request.seed is None and self.config.seed is not None:
            request.seed = self.config.seed + self._seeded
            self._seeded += 1


@dataclass
class Exchange(Generic[B]):
    """A request that is being answered, and its client."""

    service: Service
    request: B
    http: Request
    started_at: float = field(default_factory=time.monotonic)
    wanted: bool = True  # somebody waits for the preparation of the request
    id: str = field(default_factory=lambda: f"req-{secrets.token_hex(12)}")

    async def recorded(self, work: Coroutine[Any, Any, Response]) -> Response:
        """The response, with its log line. A stream is recorded at its end.

        Raises:
            ApiError: the response is an error.
        """
        status = 500
        try:
            if self.service.draining:
                work.close()
                raise ApiError(503, "The server is shutting down.", "server_error", retry_after=RETRY_AFTER)
            response = await work
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
            if not (self.request.streams and status == 200):
                self.record(status)

    @property
    def deadline(self) -> float:
        """When the request is given up, as ``time.monotonic()`` counts."""
        longest = self.service.config.deadline
        return self.started_at + min(self.request.seconds or longest, longest)

    async def while_wanted(self, work: Coroutine[Any, Any, T], disconnected: asyncio.Task[None]) -> T:
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
                raise ApiError(503, message, "server_error", retry_after=RETRY_AFTER)
            if disconnected.done():
                raise ApiError(CLIENT_CLOSED_REQUEST, "The client closed the connection.", "cancelled")
            raise ApiError.late()
        finally:
            self.wanted = task.done()
            task.cancel()
            stopped.cancel()

    def checkpoint(self) -> None:
        """End the preparation of a request that nobody waits for."""
        if not self.wanted or time.monotonic() > self.deadline:
            raise ApiError.late()

    async def disconnected(self) -> None:
        """Return when the client closes the connection."""
        while (await self.http.receive())["type"] != "http.disconnect":
            pass

    def client(self) -> object:
        """The client for the queue's round robin: an API key, else an address."""
        key = self.http.scope.get("client_key")
        return key if key is not None else self.http.client.host if self.http.client else ""

    def record(self, status: int) -> None:
        """Update the metrics and write the log line of the request."""
        route, metrics, seconds = self.http.url.path, self.service.metrics, time.monotonic() - self.started_at
        metrics.requests.labels(route, str(status)).inc()
        metrics.seconds.labels(route).observe(seconds)
        line: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "route": route,
            "model": self.request.model,
            "status": status,
            **self.measured(),
            "seconds": round(seconds, 4),
        }
        if self.service.config.log_text:
            line["request"] = self.request.model_dump(exclude_none=True, by_alias=True)
            line["answers"] = self.answers()
        logger().info(line)

    def measured(self) -> dict[str, Any]:
        """Numbers of the log line."""
        raise NotImplementedError

    def answers(self) -> list[Any]:
        """Answers for the log line, where texts are logged."""
        raise NotImplementedError
