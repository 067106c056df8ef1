"""A cell: one piece of a study. Its fields are everything it depends on, and their hash is its name."""

from __future__ import annotations

import dataclasses
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from redraft.evaluation.machine import hardware
from redraft.evaluation.result_cache import digest
from redraft.executors.base import Resources, State
from redraft.loading import load
from redraft.model import Model
from redraft.registry import Registered
from redraft.runtime import weight_type

VERSION = 1  # of the content of cells: raise it when older ones can't be used any more


@dataclass
class Bench(State):
    """Where cells are computed. It can be sent to another process that sees the same folder."""

    out: Path
    device: torch.device
    data_root: str | None
    _loaded: dict[Path, Model] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "log": _silent, "_loaded": {}}

    def model(self, folder: Path) -> Model:
        """A trained model; the last few stay in memory."""
        if folder not in self._loaded:
            self._loaded = dict(list(self._loaded.items())[-3:])
            self._loaded[folder] = load(folder, str(self.device))
        return self._loaded[folder]


@dataclass(frozen=True)
class Cell(Registered, ABC):
    """One piece of work. Equal cells are computed once, also for different claims.

    A field that is a cell, or a tuple of cells, must be computed before. Fields with ``compare=False`` don't change
    what is computed: they are not part of the name.
    """

    alone: ClassVar[bool] = False  # it measures times

    @abstractmethod
    def work(self, bench: Bench) -> dict[str, Any]:
        """Compute the value, as plain values.

        Raises:
            UserError: it can't be computed.
        """

    @property
    @abstractmethod
    def label(self) -> str:
        """What it is, in a few words, for progress and errors."""

    @property
    def weight(self) -> float:
        """Expected work, in tokens of training of the claim's models: only ratios count, for the time left."""
        return 1.0

    def intact(self, out: Path) -> bool:
        """Are the files there that other cells read?"""
        return True

    def inputs(self) -> dict[str, Any]:
        """What the cell depends on, as plain values; other cells by their ids."""
        return {one.name: plain(vars(self)[one.name]) for one in dataclasses.fields(self) if one.compare}

    @cached_property
    def key(self) -> dict[str, Any]:
        """Its kind and its inputs."""
        return {"cell": self.name, "version": VERSION, **self.inputs()}

    @cached_property
    def id(self) -> str:
        """The hash of its key."""
        return digest(self.key)

    @cached_property
    def needs(self) -> tuple[Cell, ...]:
        """The cells that must be computed before."""
        return tuple(_cells(vars(self)[one.name] for one in dataclasses.fields(self)))

    def resources(self, bench: Bench) -> Resources:
        """What it occupies while it runs."""
        return Resources(torch.get_num_threads(), int(bench.device.type == "cuda"))


class ModelCell(Cell):
    """A cell whose result is a model in a folder."""

    data: Any  # cell of the task that it is for
    model: str  # its name in the claim
    seed: int

    @abstractmethod
    def folder(self, out: Path) -> Path:
        """Where the model is.

        Raises:
            UserError: there is no such model.
        """


def plain(value: Any) -> Any:
    """A field of a cell as plain values; a cell is its id."""
    if isinstance(value, Cell):
        return value.id
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    return value


def _cells(values: Iterable[Any]) -> Iterator[Cell]:
    for value in values:
        if isinstance(value, Cell):
            yield value
        elif isinstance(value, tuple):
            yield from _cells(value)


def perform(bench: Bench, cell: Cell) -> dict[str, Any]:
    """The value of a cell, and the record of how it was made."""
    begin, cpu, started = time.monotonic(), time.process_time(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    value = cell.work(bench)
    record = {
        "started": started,
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "node": socket.gethostname(),
        "dtype": str(weight_type(None, bench.device)).removeprefix("torch."),
        **hardware(bench.device),
    }
    return {"value": value, "record": record}


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """The cells and all that they need, each once, after what it needs."""
    found: dict[str, Cell] = {}

    def add(cell: Cell) -> None:
        if cell.id not in found:
            for other in cell.needs:
                add(other)
            found[cell.id] = cell

    for cell in cells:
        add(cell)
    return list(found.values())


def _silent(line: str) -> None:
    """The log of a bench that was sent, until it gets another one."""
