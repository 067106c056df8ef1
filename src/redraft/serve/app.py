"""The HTTP application: OpenAI's routes, infilling, decisions, health, metrics, and the web page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from redraft import __version__
from redraft.serve import decide_schema, requests, schema
from redraft.serve.compilers import Compilers
from redraft.serve.config import ServerConfig
from redraft.serve.decisions import DecisionHandler
from redraft.serve.engine import EngineLimits
from redraft.serve.errors import ApiError, add_error_handlers
from redraft.serve.exchange import Service
from redraft.serve.handler import RequestHandler
from redraft.serve.middleware import RequestGuard
from redraft.serve.model_pool import ModelEntry, ModelPool
from redraft.serve.responses import ChatResponse, CompletionResponse, InfillResponse, ResponseBuilder
from redraft.serve.telemetry import Metrics, logger

STATIC = Path(__file__).parent / "static"
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schema.ErrorBody, "description": description}
    for status, description in {
        400: "The request is invalid or can't be fulfilled; the message gives the reason",
        401: "The request has no valid API key",
        404: "There is no such model",
        408: "The request was not finished before its deadline",
        413: "The request is too large",
        421: "The request is not addressed to localhost",
        429: "The queue is full; see Retry-After",
        503: "The server is shutting down; see Retry-After",
    }.items()
}


def create_app(config: ServerConfig, on_ready: Callable[[], None] | None = None) -> FastAPI:
    """The application. It loads the models when it starts.

    Args:
        on_ready: called when the models are loaded.
    Raises:
        UserError: a model does not exist.
    """
    limits = EngineLimits(config.batch, config.queue, client_share=config.client_share, stuck_after=config.stuck_after)
    pool = ModelPool(config.models, config.device, limits, config.dtype)
    service = Service(config, pool, Metrics(pool), Compilers(config.compilers, config.compile_timeout))
    app = FastAPI(
        title="redraft",
        version=__version__,
        description="Diffusion and autoregressive language models behind OpenAI's API.",
        lifespan=_lifespan(service, on_ready),
        docs_url=None,  # its page loads scripts from other hosts
        redoc_url=None,
    )
    app.state.service = service
    add_error_handlers(app)
    _add_operation_routes(app, service)
    _add_model_routes(app, service)
    _add_generation_routes(app, service)
    app.mount("/", StaticFiles(directory=STATIC, html=True), name="page")
    app.add_middleware(RequestGuard, config=config, service=service)
    if config.cors:
        from fastapi.middleware.cors import CORSMiddleware

        # Outside of the guard: browsers send preflights without a key, and read errors only with the header.
        app.add_middleware(
            CORSMiddleware, allow_origins=list(config.cors), allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    return app


def _lifespan(
    service: Service, on_ready: Callable[[], None] | None
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """Load the models at the start; finish requests and close the engines at the end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        config, pool = service.config, service.pool
        for entry in pool.entries.values():
            await pool.open(entry)
        unloading = asyncio.create_task(_unload_idle(service)) if config.unload_after else None
        if on_ready is not None:
            on_ready()
        yield
        service.draining = True
        if unloading is not None:
            unloading.cancel()
        await service.compilers.close()
        await pool.close(config.shutdown_timeout)
        service.planners.shutdown(wait=False)

    return lifespan


async def _unload_idle(service: Service) -> None:
    """Unload idle models, for ever."""
    seconds = service.config.unload_after * 60
    while True:
        await asyncio.sleep(max(1.0, seconds / 4))
        for name in await service.pool.unload_idle(seconds):
            logger().info({"event": "unloaded", "model": name})


def _add_operation_routes(app: FastAPI, service: Service) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", tags=["operation"])
    async def healthz() -> JSONResponse:
        """Status 200 while the server accepts requests; 503 while it shuts down, or if a model's engine is stuck."""
        entries = service.pool.entries.values()
        stuck = [entry.name for entry in entries if entry.engine is not None and entry.engine.stuck]
        status = "draining" if service.draining else "stuck" if stuck else "ok"
        body = {"status": status, "version": __version__, **({"stuck": stuck} if stuck else {})}
        return JSONResponse(body, 200 if status == "ok" else 503)

    @app.head("/metrics", include_in_schema=False)
    @app.get("/metrics", tags=["operation"])
    async def metrics() -> Response:
        """Metrics in Prometheus format."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_model_routes(app: FastAPI, service: Service) -> None:
    @app.head("/v1/models", include_in_schema=False)
    @app.get("/v1/models", tags=["models"])
    async def models() -> dict[str, Any]:
        """All models of this server, with their properties."""
        return {"object": "list", "data": [entry.describe() for entry in service.pool.entries.values()]}

    # A name may contain a slash, as those of the hub do.
    @app.get("/v1/models/{name:path}", tags=["models"], responses={404: _ERRORS[404]})
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        return service.find(name).describe()


def _add_generation_routes(app: FastAPI, service: Service) -> None:
    config = service.config

    @app.post("/v1/completions", tags=["generation"], responses=_ERRORS)
    async def completions(body: schema.CompletionRequest, http: Request) -> Any:
        """Continue a prompt; with ``suffix``, fill the gap between prompt and suffix."""

        def make(entry: ModelEntry, checkpoint: requests.Checkpoint) -> ResponseBuilder:
            return CompletionResponse(body, requests.completion(body, entry.model, config, checkpoint))

        return await RequestHandler(service, body, http).respond(make)

    @app.post("/v1/chat/completions", tags=["generation"], responses=_ERRORS)
    async def chat(body: schema.ChatRequest, http: Request) -> Any:
        """Answer a conversation."""

        def make(entry: ModelEntry, _: requests.Checkpoint) -> ResponseBuilder:
            return ChatResponse(body, requests.conversation(body, entry.model, entry.chat_template, config))

        return await RequestHandler(service, body, http).respond(make)

    @app.post("/v1/infill", tags=["generation"], responses=_ERRORS)
    async def infill(body: schema.InfillRequest, http: Request) -> Any:
        """Fill the holes of a text, using the context on both sides of each hole."""

        def make(entry: ModelEntry, checkpoint: requests.Checkpoint) -> ResponseBuilder:
            return InfillResponse(body, requests.infill(body, entry.model, config, checkpoint))

        return await RequestHandler(service, body, http).respond(make)

    @app.post("/v1/decide", tags=["generation"], responses=_ERRORS)
    async def decide(body: decide_schema.DecideRequest, http: Request) -> decide_schema.DecideResponse:
        """Choose the label of each slot of a text, with a probability for each label."""
        return await DecisionHandler(service, body, http).respond()  # type: ignore[return-value] # already JSON

    @app.api_route("/v1/embeddings", methods=["GET", "POST"], include_in_schema=False)
    async def embeddings() -> None:
        raise ApiError(
            404, "This server has no embeddings: its models generate text.", "invalid_request_error", "not_found"
        )
