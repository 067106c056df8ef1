"""The models of a server: loaded when they are needed, unloaded when they are idle."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from redraft.adapters import is_adapter
from redraft.data.chat import template_of
from redraft.errors import UserError, suggest
from redraft.generation.start import check_settings
from redraft.gguf_file import is_gguf
from redraft.loading import ModelInfo, load, model_info, resolve
from redraft.model import Model
from redraft.serve.engine import Engine, EngineLimits
from redraft.settings import Dtype


@dataclass
class ModelEntry:
    """A model under the name by which requests select it. A request can never name a path."""

    name: str
    folder: Path
    info: ModelInfo
    chat_template: str | None
    created: int  # seconds since 1970
    engine: Engine | None = None  # None: not loaded
    samplers: list[str] = field(default_factory=list)  # those that work with the model; filled when it is loaded
    last_used: float = 0.0  # time.monotonic()
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def model(self) -> Model:
        """The loaded model."""
        assert self.engine is not None
        return self.engine.model

    def describe(self) -> dict[str, Any]:
        """The entry of this model in /v1/models."""
        info = self.info
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "redraft",
            "family": info.family,
            "context": info.context,
            "paired": info.paired,
            "left_to_right": info.left_to_right,
            "infill": info.infills,
            "chat_template": self.chat_template is not None,
            "samplers": self.samplers,
            "defaults": dict(info.defaults),
            "loaded": self.engine is not None,
        }


class ModelPool:
    """All models of a server."""

    def __init__(
        self, models: Sequence[str], device: str, limits: EngineLimits, dtype: torch.dtype | Dtype = "auto"
    ) -> None:
        """
        Args:
            models: folders, GGUF files, shipped or packaged models, or names on the hub; ``NAME=MODEL`` sets the name.
        Raises:
            UserError: there is no such model, its configuration is invalid, or two models have the same name.
        """
        self.device, self.limits, self.dtype = device, limits, dtype
        self.entries: dict[str, ModelEntry] = {}
        for model in models:
            name, folder = name_and_folder(model)
            if name in self.entries:
                raise UserError(f"Two models have the name '{name}'.", f"Rename one: OTHER={model}.")
            if is_adapter(folder):
                raise UserError(
                    f"'{model}' is an adapter.", "Merge it first: redraft convert BASE DST --adapter FOLDER."
                )
            described = folder if is_gguf(folder) else folder / "config.json"
            created = int(described.stat().st_mtime)
            self.entries[name] = ModelEntry(name, folder, model_info(folder), template_of(folder), created)

    def find(self, name: str) -> ModelEntry:
        """The model with this name.

        Raises:
            UserError: this server has no such model.
        """
        if name not in self.entries:
            raise UserError(f"The model '{name}' is not served here.", suggest(name, self.entries))
        return self.entries[name]

    async def open(self, entry: ModelEntry) -> Engine:
        """The engine of a model, which is loaded first if necessary."""
        async with entry.lock:
            entry.last_used = time.monotonic()
            if entry.engine is None:
                entry.engine = await asyncio.to_thread(self._load, entry)
                entry.samplers = entry.samplers or _working_samplers(entry.model)
            return entry.engine

    def _load(self, entry: ModelEntry) -> Engine:
        return Engine(load(entry.folder, self.device, self.dtype), self.limits)

    async def unload_idle(self, seconds: float) -> list[str]:
        """Unload the models that have been idle for this many seconds, and return their names."""
        unloaded = []
        for entry in self.entries.values():
            async with entry.lock:
                engine = entry.engine
                if engine is not None and engine.idle and time.monotonic() - entry.last_used > seconds:
                    entry.engine = None
                    await asyncio.to_thread(engine.close)
                    unloaded.append(entry.name)
        if unloaded:
            gc.collect()
        return unloaded

    async def close(self, timeout: float) -> None:
        """Close all engines; sequences that are not finished within ``timeout`` seconds fail."""
        engines = [entry.engine for entry in self.entries.values() if entry.engine is not None]
        await asyncio.gather(*(asyncio.to_thread(engine.close, timeout) for engine in engines))


def name_and_folder(model: str) -> tuple[str, Path]:
    """The name and the folder (or GGUF file) of a model. One of the hub keeps its name there, not its snapshot's.

    Args:
        model: a folder, a GGUF file, a shipped model or a name on the hub; ``NAME=MODEL`` sets the name.
    Raises:
        UserError: there is no such model.
    """
    name, given, rest = model.partition("=")
    if given and name and not Path(model).exists():
        return name, resolve(rest).resolve()
    folder = resolve(model)
    return (folder.resolve().name.removesuffix(".gguf") if folder == Path(model) else model), folder.resolve()


def _working_samplers(model: Model) -> list[str]:
    """The names of the samplers that work with a model."""
    from redraft.registry import names

    found = []
    for name in names("samplers"):
        try:
            check_settings(model, model.settings(sampler=name, options={}, max_new_tokens=4))
        except UserError:
            continue
        found.append(name)
    return found
