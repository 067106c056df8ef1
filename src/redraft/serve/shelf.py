"""The models of a server: loaded when first asked for, put away when nobody has asked for a while."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from redraft.data.chat import template_of
from redraft.errors import UserError, suggest
from redraft.loading import Outline, load, outline, resolve
from redraft.model import Model
from redraft.serve.engine import Engine, Limits


@dataclass
class Entry:
    """A model by name. Requests name it by this name alone: no path ever comes from outside."""

    name: str
    folder: Path
    about: Outline
    template: str | None
    created: int
    engine: Engine | None = None
    samplers: list[str] = field(default_factory=list)  # those that can write with it; known once it has been loaded
    used: float = 0.0  # time.monotonic()
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def model(self) -> Model:
        assert self.engine is not None
        return self.engine.model

    def describe(self) -> dict[str, Any]:
        """For /v1/models, loaded or not."""
        about = self.about
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "redraft",
            "family": about.family,
            "context": about.context,
            "conditional": about.conditional,
            "left_to_right": about.left_to_right,
            "infill": about.infills,
            "chat_template": self.template is not None,
            "samplers": self.samplers,
            "defaults": dict(about.defaults),
            "loaded": self.engine is not None,
        }


class Shelf:
    """All models of a server."""

    def __init__(self, models: Sequence[str], device: str, limits: Limits, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            models: folders, and names of shipped models or of the hub; ``NAME=MODEL`` gives one another name.
        Raises:
            UserError: no such model, one that can't be understood, or two of the same name.
        """
        self.device, self.limits, self.dtype = device, limits, dtype
        self.entries: dict[str, Entry] = {}
        for model in models:
            name, folder = _named(model)
            if name in self.entries:
                raise UserError(f"two models are called '{name}'.", f"Name one: --model OTHER={model}.")
            if not (folder / "config.json").is_file():
                raise UserError(f"'{model}' is an adapter.", "Merge it: redraft convert BASE DST --adapter FOLDER.")
            created = int((folder / "config.json").stat().st_mtime)
            self.entries[name] = Entry(name, folder, outline(folder), template_of(folder), created)

    def find(self, name: str) -> Entry:
        """
        Raises:
            UserError: not one of this server's models.
        """
        if name not in self.entries:
            raise UserError(f"the model '{name}' is not served here.", suggest(name, self.entries))
        return self.entries[name]

    async def open(self, entry: Entry) -> Engine:
        """The engine of a model, loaded if need be."""
        async with entry.lock:
            entry.used = time.monotonic()
            if entry.engine is None:
                entry.engine = await asyncio.to_thread(self.load, entry)
                entry.samplers = entry.samplers or _fitting(entry.model)
            return entry.engine

    def load(self, entry: Entry) -> Engine:
        return Engine(load(entry.folder, self.device, self.dtype), self.limits)

    async def put_away(self, idle: float) -> list[str]:
        """Unload models that have had nothing to do for ``idle`` seconds; their names."""
        gone = []
        for entry in self.entries.values():
            async with entry.lock:
                engine = entry.engine
                if engine is not None and engine.idle and time.monotonic() - entry.used > idle:
                    entry.engine = None
                    await asyncio.to_thread(engine.close)
                    gone.append(entry.name)
        if gone:
            gc.collect()
        return gone

    async def close(self, patience: float) -> None:
        """Finish what is under way within ``patience`` seconds."""
        engines = [entry.engine for entry in self.entries.values() if entry.engine is not None]
        await asyncio.gather(*(asyncio.to_thread(engine.close, patience) for engine in engines))


def _named(model: str) -> tuple[str, Path]:
    """What a model is called, and its folder. One of the hub goes by its name there, not by its snapshot's."""
    name, given, rest = model.partition("=")
    if given and name and not Path(model).exists():
        return name, resolve(rest).resolve()
    folder = resolve(model)
    return (folder.resolve().name if folder == Path(model) else model), folder.resolve()


def _fitting(model: Model) -> list[str]:
    """The samplers that can write with a model: those that don't refuse to begin."""
    from redraft.registry import names

    found = []
    for name in names("samplers"):
        try:
            model.check(model.settings(sampler=name, options={}, max_new_tokens=4))
        except UserError:
            continue
        found.append(name)
    return found
