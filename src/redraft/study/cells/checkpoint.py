"""A model that exists already, in place of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft.loading import load, resolve
from redraft.study.cells.base import Bench, ModelCell
from redraft.study.cells.data import Data


@dataclass(frozen=True)
class Checkpoint(ModelCell):
    """A shipped model, or a folder. ``marks`` identify its files: a name may come to mean another model."""

    data: Data  # the task that it is for
    marks: str
    name_or_path: str = field(compare=False)
    model: str = field(default="", compare=False)  # its name in the claim
    seed: int = 0

    @property
    def label(self) -> str:
        return f"checkpoint {self.name_or_path}"

    def folder(self, out: Path) -> Path:
        return resolve(self.name_or_path)

    def work(self, bench: Bench) -> dict[str, Any]:
        """Look at it."""
        model = load(self.folder(bench.out), str(bench.device))
        return {
            "checkpoint": self.name_or_path,
            "marks": self.marks,
            "parameters": model.network.parameter_count,
            "family": model.family_name,
            "tokenizer": model.tokenizer.fingerprint,
            "settings": dict(model.defaults),
        }
