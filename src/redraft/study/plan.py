"""What running claims will take: memory and time of their training runs by the roofline, and the number of cells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from redraft.host_memory import readable
from redraft.planning.machine import find as machine_of
from redraft.planning.step import step
from redraft.planning.training import Planned
from redraft.study.cells.base import ordered
from redraft.study.cells.train import Train
from redraft.study.experiment import Experiment, Found, analysis_of
from redraft.study.store import Store
from redraft.train.recipe import Recipe

_DECODING = 1.0  # seconds of other cells for each second of training, a rough average


@dataclass(frozen=True)
class ClaimPlan:
    """The cells that a claim begins with, and what its training runs take."""

    claim: str
    kinds: dict[str, int]  # cells by kind; more may follow, when settings have been chosen
    done: int  # of them already computed
    train_seconds: float
    memory: int  # bytes of the largest run

    @property
    def line(self) -> str:
        """The plan in words."""
        cells = ", ".join(f"{count} {kind}" for kind, count in self.kinds.items())
        minutes = (1 + _DECODING) * self.train_seconds / 60
        memory = f"; memory {readable(self.memory)}" if self.memory else ""
        return (
            f"{self.claim}: {sum(self.kinds.values())} cells ({cells}), {self.done} done; training about "
            f"{self.train_seconds / 60:.1f} minutes, all of it about {minutes:.0f}{memory}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, in seconds and bytes."""
        return vars(self)


def plan(experiments: Sequence[Experiment], device: torch.device, store: Store | None) -> list[ClaimPlan]:
    """The plans of claims. A cell that two of them share is counted for the first. Nothing is computed or written.

    Raises:
        UserError: a wrong recipe, or data that can't be found.
    """
    machine = machine_of("this", device)
    taken: set[str] = set()
    seconds: dict[str, tuple[float, int]] = {}

    def cost(cell: Train) -> tuple[float, int]:
        recipe = _outlined(cell)
        key = recipe.to_toml()
        if key not in seconds:
            planned = Planned.of(recipe, device)
            memory = planned.memory()
            update = step(planned.outline, machine, memory.checkpointing)
            seconds[key] = cell.train.get("tokens", 0) / update.tokens_per_second, memory.total
        return seconds[key]

    found = []
    for one in experiments:
        cells = [c for c in ordered(analysis_of(one.claim).cells(one, Found())) if c.id not in taken]
        taken |= {cell.id for cell in cells}
        done = {cell.id for cell in cells if store is not None and store.get(cell) is not None}
        runs = [cost(cell) for cell in cells if isinstance(cell, Train) and cell.id not in done]
        found.append(
            ClaimPlan(
                claim=one.claim.id,
                kinds=dict(Counter(cell.name for cell in cells)),
                done=len(done),
                train_seconds=sum(time for time, _ in runs),
                memory=max((memory for _, memory in runs), default=0),
            )
        )
    return found


def _outlined(cell: Train) -> Recipe:
    """The recipe of a run without its files, which are not there yet, and from scratch."""
    data = cell.data.tokenizer_of or cell.data
    kind = "bytes" if data.tokenizer == "bytes" else "bpe"
    tables: dict[str, Any] = {
        "data": {"source": "-", "length": cell.data.length},
        "tokenizer": {"kind": kind, "vocab_size": data.vocab_size},
        "model": {"network": cell.network, "preset": cell.preset},
        "family": cell.family,
        "train": {"tokens": 1, **cell.train},
    }
    recipe = Recipe.of(tables, "plan")
    return replace(recipe, train=replace(recipe.train, seed=0))


def total(plans: Sequence[ClaimPlan]) -> float:
    """Minutes of all claims together."""
    return sum((1 + _DECODING) * one.train_seconds for one in plans) / 60
