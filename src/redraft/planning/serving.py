"""The memory that a server will need, before anything is loaded: what fits, and what to change if it doesn't.

    weights      of each model, and on a CPU their copy in the order of its fast form (``models/cpu``)
    cache        keys and values of the whole context for each row of the batch, 2 N g kappa bytes a position. On a
                 CPU a position takes memory when it is first written, elsewhere all of them at the first request
    workspace    activations and logits of the positions of a pass: at most those of the whole batch

A server starts if it can answer requests: with the weights, what is allocated at the first request, and one row whose
context is full. The largest batch is that in which every row's context may be full at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from redraft import runtime
from redraft.config import to_mapping
from redraft.errors import UserError
from redraft.evaluation.memory import available
from redraft.host_memory import readable
from redraft.loading import outline
from redraft.models.cpu import cpu_form
from redraft.planning.activations import forward_bytes
from redraft.planning.machine import Machine, process_bytes
from redraft.planning.twin import Outline
from redraft.settings import Dtype
from redraft.train.recipe import Recipe

_SPARE = 0.95  # of the available memory may be used
_FLOAT32 = 4  # bytes: log-probabilities are float32


@dataclass(frozen=True)
class ServedModel:
    """Bytes that one model of a server takes."""

    name: str
    dtype: str
    positions: int  # of a row
    weights: int
    copies: int  # of the weights, in the form that is fast on a CPU
    cache_row: int  # keys and values of a row
    workspace_row: int  # activations and logits of a pass, for each row


@dataclass(frozen=True)
class ServerPlan:
    """Bytes that a server needs on its device."""

    device: str
    available: int | None  # None: this system doesn't say
    process: int  # Python and libraries; 0 on an accelerator
    models: tuple[ServedModel, ...]
    rows: int  # of a batch
    lazy: bool  # the cache takes memory when it is written

    def at(self, rows: int) -> int:
        """Bytes with this many rows whose context is full, in every model."""
        fixed = self.process + sum(one.weights + one.copies for one in self.models)
        return fixed + rows * sum(one.cache_row + one.workspace_row for one in self.models)

    @property
    def total(self) -> int:
        """Bytes if every row of the batch is full."""
        return self.at(self.rows)

    @property
    def needed(self) -> int:
        """Bytes without which it can't answer: a row that is full, and what the first request allocates."""
        return self.at(1) + (0 if self.lazy else (self.rows - 1) * sum(one.cache_row for one in self.models))

    @property
    def fits(self) -> bool:
        """Can it answer requests?"""
        return self.available is None or self.needed <= _SPARE * self.available

    @property
    def largest_batch(self) -> int:
        """Rows that may all be full; 0: not one, or the memory is not known."""
        row = self.at(1) - self.at(0)
        return 0 if self.available is None else max(0, int((_SPARE * self.available - self.at(0)) // max(row, 1)))

    def __str__(self) -> str:
        parts = {
            "weights": sum(one.weights for one in self.models),
            "their copies": sum(one.copies for one in self.models),
            f"cache of {self.rows} rows": self.rows * sum(one.cache_row for one in self.models),
            "workspace": self.rows * sum(one.workspace_row for one in self.models),
            "process": self.process,
        }
        held = ", ".join(f"{name} {readable(size)}" for name, size in parts.items() if size)
        room = "" if self.available is None else f" of {readable(self.available)} available on {self.device}"
        most = f"; largest batch {self.largest_batch:,} full rows" if self.largest_batch else ""
        return f"memory   {readable(self.total)} if every row is full{room}: {held}{most}"

    def to_json(self) -> dict[str, Any]:
        """Plain values, in bytes."""
        facts = ("total", "needed", "fits", "largest_batch")
        return {**asdict(self), **{name: getattr(self, name) for name in facts}}


def serving(
    models: Mapping[str, str | Path],
    device: torch.device,
    dtype: str | Dtype = "auto",
    rows: int = 32,
    positions: int = 0,
    machine: Machine | None = None,
) -> ServerPlan:
    """The memory of a server with these models.

    Args:
        models: folders or names of models, by the names in requests.
        rows: of a batch. positions: longest row; 0: the models' contexts. machine: plan for this one instead.
    Raises:
        UserError: there is no such model.
    """
    return server({name: served(model, positions) for name, model in models.items()}, device, dtype, rows, machine)


def server(
    runs: Mapping[str, Outline], device: torch.device, dtype: str | Dtype, rows: int, machine: Machine | None = None
) -> ServerPlan:
    """The memory of a server with models of these outlines, by name."""
    on_cpu = not machine.accelerator if machine is not None else device.type == "cpu"
    where = torch.device("cpu") if on_cpu else torch.device("cuda")
    kind = runtime.weight_type(dtype, where)
    room = int(machine.memory) if machine is not None else available(device)
    return ServerPlan(
        device=str(device) if machine is None else machine.name,
        available=room,
        process=process_bytes(fresh=machine is not None) if on_cpu else 0,
        models=tuple(_model(name, run, kind, on_cpu) for name, run in runs.items()),
        rows=rows,
        lazy=on_cpu,
    )


def served(model: str | Path, positions: int = 0) -> Outline:
    """The outline of a model that is to be served.

    Args:
        positions: of a row; 0: its context.
    Raises:
        UserError: there is no such model.
    """
    found = outline(model)
    family = {"name": found.family_name, **to_mapping(found.family)}
    tables: dict[str, Any] = {
        "data": {"length": positions or found.network.config.max_length},
        "model": {"from": str(model)},
        "family": family,
        "train": {"tokens": 1, "batch_tokens": 1 << 30, "dtype": "float32"},
    }
    return Outline.of(Recipe.of(tables), bfloat16=False)


def _model(name: str, run: Outline, dtype: torch.dtype, on_cpu: bool) -> ServedModel:
    """The bytes of one model. Its activations are counted in float32, and take less in fewer bits."""
    shape, share = run.shape, dtype.itemsize / 4
    twin = run.twin(1, "none", False)
    cache = twin.network.store(1, run.row).pairs[0].nbytes  # of a layer in float32; nothing of it is written
    copied = on_cpu and dtype == torch.float32 and cpu_form(twin.network.eval()) is not None
    width = shape.vocab_size * (2 if shape.edits else 1)
    causal = twin.spec.network.attention.kind == "causal"
    targets = 1 if causal else run.row
    logits = targets * width * (_FLOAT32 if dtype == torch.float32 else dtype.itemsize + _FLOAT32)
    activations = forward_bytes(run).row * run.row / run.length
    return ServedModel(
        name=name,
        dtype=str(dtype).removeprefix("torch."),
        positions=run.row,
        weights=dtype.itemsize * run.parameters,
        copies=4 * (run.stacked + shape.vocab_size * shape.dim) if copied else 0,
        cache_row=int(share * shape.layers * cache),
        workspace_row=int(share * activations + logits),
    )


def require(plan: ServerPlan) -> None:
    """Check that a server can answer requests.

    Raises:
        UserError: it can't; names what would help.
    """
    if plan.fits:
        return
    assert plan.available is not None
    what = f"The server needs {readable(plan.needed)} of memory, and {readable(plan.available)} are available."
    ways = []
    if not plan.lazy and plan.largest_batch:
        ways.append(f"lower the batch (--batch {plan.largest_batch})")
    if any(one.dtype == "float32" for one in plan.models):
        ways.append("use 16 bits (--dtype bfloat16)")
    if len(plan.models) > 1:
        ways.append("serve fewer models")
    text = ", or ".join(ways) or "use a smaller model"
    raise UserError(what, f"{text[0].upper()}{text[1:]}.")
