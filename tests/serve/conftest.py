"""Tiny untrained models behind a server: in this process, or listening on a port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sse_starlette")
pytest.importorskip("prometheus_client")

WORDS = ["the cat sat on a mat", "a dog ran to the house", "where is the bird that sang all day", "mat cat dog on to"]


ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "text-masked", "prompt": "the cat", "max_tokens": 8},
    "/v1/chat/completions": {"model": "pairs-masked", "messages": [{"role": "user", "content": "the cat"}]},
    "/v1/decide": {"model": "text-masked", "text": "the [who] sat", "labels": {"who": ["cat", "dog"]}},
    "/v1/infill": {"model": "text-masked", "text": "the [[2]] sat on [[1]] mat"},
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of prompt and answer and of plain text, of two families, with larger weights for peaked distributions."""
    from redraft.data.tokenizer import Tokenizer
    from redraft.model import Model
    from redraft.presets import preset

    root = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train(WORDS * 20, 300)
    shape = preset("toy", tokenizer.vocab_size, dim=32, max_length=128)
    found = {}
    for family in ("masked", "autoregressive"):
        for name, paired in (("pairs", True), ("text", False)):
            model = Model.fresh({"name": family}, tokenizer, shape, paired, seed=1)
            for parameter in model.network.parameters():
                if parameter.ndim == 2:
                    parameter.data.mul_(5)
            found[f"{name}-{family}"] = root / f"{name}-{family}"
            model.save(found[f"{name}-{family}"])
    return found


@pytest.fixture(scope="session")
def offline(folders: dict[str, Path]) -> dict[str, Any]:
    """The same models, loaded for offline generation."""
    from redraft.loading import load

    return {name: load(folder, "cpu") for name, folder in folders.items()}


def server_config(folders: dict[str, Path], **changes: Any) -> Any:
    from redraft.serve.config import ServerConfig

    chosen: dict[str, Any] = {
        "models": tuple(map(str, folders.values())),
        "batch": 8,
        "device": "cpu",
        "shutdown_timeout": 5.0,
    }
    return ServerConfig(**{**chosen, **changes})


@pytest.fixture(scope="session")
def client(folders: dict[str, Path]) -> Iterator[Any]:
    """A client of the application in this process."""
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app

    with TestClient(create_app(server_config(folders)), base_url="http://localhost") as opened:
        yield opened


@contextmanager
def listening(folders: dict[str, Path], **changes: Any) -> Iterator[str]:
    """The address of a server of these models on a free port of this machine."""
    import uvicorn

    from redraft.serve.app import create_app
    from redraft.serve.server import listen

    chosen = server_config(folders, port=0, **changes)
    listener = listen(chosen)
    server = uvicorn.Server(uvicorn.Config(create_app(chosen), log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    end = time.monotonic() + 30
    while not server.started and time.monotonic() < end:
        time.sleep(0.02)
    assert server.started
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def address(folders: dict[str, Path]) -> Iterator[str]:
    """The address of a server on a free port of this machine."""
    with listening(folders) as found:
        yield found
