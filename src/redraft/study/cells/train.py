"""A training run of one model on the data of one task with one seed."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft.compare.format import clock
from redraft.files import remove
from redraft.loading import is_model
from redraft.study.cells.base import Bench, ModelCell
from redraft.study.cells.data import Data
from redraft.train.logging import Event
from redraft.train.loop import train
from redraft.train.recipe import Recipe


@dataclass(frozen=True)
class Train(ModelCell):
    """A trained model in ``OUT/models/ID``. If it is interrupted, it goes on from its last checkpoint."""

    data: Data
    family: dict[str, Any]
    network: str
    preset: str
    train: dict[str, Any]
    seed: int
    start: ModelCell | None = None  # a model that is converted
    model: str = field(default="", compare=False)  # its name in the claim

    @property
    def label(self) -> str:
        return f"training of {self.model} on {self.data.task}, seed {self.seed}"

    @property
    def weight(self) -> float:
        return float(self.train.get("tokens", 1_000_000))

    def folder(self, out: Path) -> Path:
        return out / "models" / self.id

    def intact(self, out: Path) -> bool:
        return is_model(self.folder(out))

    def recipe(self, out: Path) -> Recipe:
        """The recipe of the run.

        Raises:
            UserError: a wrong value in the claim's tables.
        """
        folder = self.data.folder(out).resolve()
        columns = {"input": "input", "target": "target"} if self.data.paired else {"text": "text"}
        tables: dict[str, Any] = {
            "data": {
                "source": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
                "length": self.data.length,
                "too_long": "skip",
                **columns,
            },
            "tokenizer": {"kind": "file", "path": str(folder / "tokenizer")},
            "model": {"network": self.network, "preset": self.preset},
            "family": self.family,
            "train": {**self.train, "seed": self.seed},
        }
        if self.start is not None:
            tables["model"] = {"from": str(self.start.folder(out).resolve())}
        return Recipe.of(tables, f"the recipe of {self.model}", folder=str(folder))

    def work(self, bench: Bench) -> dict[str, Any]:
        """Train.

        Raises:
            UserError: a wrong value in the claim's tables, or a run that diverges.
        """
        folder = self.folder(bench.out)
        if (folder / "train" / "result.json").is_file() and not is_model(folder):
            remove(folder)  # the model of a finished run was deleted
        result = train(self.recipe(bench.out), folder, device=str(bench.device), on_event=_watch(bench, self.label))
        model = bench.model(folder)
        return {
            **dataclasses.asdict(result),
            "out": folder.name,
            "tokenizer": model.tokenizer.fingerprint,
            "family": dict(self.family),
            "curve": _curve(folder / "train" / "metrics.jsonl"),
        }


def _watch(bench: Bench, label: str) -> Callable[[Event], None]:
    """Logs the progress of a run, at most every thirty seconds."""
    last = time.monotonic()

    def watch(event: Event) -> None:
        nonlocal last
        if event.kind == "update" and time.monotonic() - last > 30:
            last = time.monotonic()
            found = event.values
            left = clock(found["eta_seconds"])
            bench.log(f"  {label}: {found['progress']:.0%}, loss {found['loss']:.3f}, {left} left")

    return watch


def _curve(path: Path) -> list[dict[str, Any]]:
    """The validations of a run: tokens, updates, passes, and bits per byte with their error."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        event = json.loads(line)
        if event["kind"] == "validation":
            names = ("tokens", "step", "passes", "nats_per_token", "nats_error", "bits_per_byte", "bits_error")
            found.append({name: event.get(name) for name in names})
    return found
