"""The tables of docs/scaling.md: memory and time from 10M to 100B parameters, and how they grow.

``redraft plan --scaling --machine h100`` prints them, and ``python -m tests.docs.test_scaling_page`` writes them into
the page.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch

from redraft.planning.machine import MACHINES, Machine
from redraft.planning.overview import Question, clock, recipe_of
from redraft.planning.parallel import Parallel
from redraft.planning.roofline import Decoder
from redraft.planning.serving import server
from redraft.planning.step import StepPlan, step
from redraft.planning.training import MemoryPlan, Planned
from redraft.planning.twin import Outline
from redraft.presets import names

CPU = torch.device("cpu")
SIZES = ("7m", "25m", "125m", "350m", "1b", "8b", "32b", "70b", "100b")
GROWN = "350m"  # the size at which growth is shown
LENGTH, BATCH = 2048, 8192  # tokens of a row, and of the batch of each device
DEVICES = 1024  # most devices that are tried


def tables(machine: Machine) -> str:
    """All tables as Markdown."""
    parts = (training_table(machine), serving_table(machine), growth_table(machine), crossing_table())
    return "\n\n".join(parts)


def _table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] + ['---:'] * (len(head) - 1))}|"]
    return "\n".join([f"**{title}**", "", *lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _question(size: str, **changes: Any) -> Question:
    usual = {"family": "masked", "length": LENGTH, "batch_tokens": BATCH, "dtype": "bfloat16"}
    return Question(preset=size, **{**usual, **changes})


def training_table(machine: Machine, sizes: Sequence[str] = SIZES) -> str:
    """Full training with AdamW: what one device would have to hold, the fewest that can, and their speed."""
    rows = []
    for size in sizes:
        alone, fitting, update = planned(size, machine)
        held = (alone.weights, alone.gradients, alone.optimizer, alone.activations, alone.logits)
        shared = "-" if fitting is None else f"{_workers(update)} ({fitting.checkpointing})"
        speed = ("-",) * 4 if fitting is None or update is None else _speed(fitting, update)
        rows.append([size, *map(gigabytes, held), shared, *speed])
    head = ["preset", "weights", "gradients", "optimizer", "activations", "logits", "devices", "GB each", "update"]
    return _table(
        f"Training on {machine.name}, GB: AdamW in float32, products in bfloat16, {BATCH:,} tokens a device, rows of "
        f"{LENGTH:,}",
        [*head, "tokens/s", "of the peak"],
        rows,
    )


def planned(size: str, machine: Machine) -> tuple[MemoryPlan, MemoryPlan | None, StepPlan | None]:
    """Full training of a preset: on one device whether it fits or not, and on the fewest devices that can."""
    recipe = recipe_of(_question(size))
    kept = replace(recipe, train=replace(recipe.train, activation_checkpointing="none"))
    alone = Planned.of(kept, CPU, machine).memory()
    workers = 1
    while workers <= DEVICES:
        parallel = Parallel(workers, "fsdp")
        found = Planned.of(recipe, CPU, machine, parallel)
        memory = found.memory()
        if memory.fits:
            return alone, memory, step(found.outline, machine, memory.checkpointing, parallel)
        workers *= 2
    return alone, None, None


def _workers(update: StepPlan | None) -> int:
    return 0 if update is None else update.workers


def _speed(memory: MemoryPlan, update: StepPlan) -> tuple[str, ...]:
    speed = f"{update.tokens_per_second:,.0f}"
    return gigabytes(memory.total), clock(update.seconds), speed, f"{update.utilisation:.0%}"


def gigabytes(size: float) -> str:
    """Bytes in GB with three digits."""
    return f"{size / 1e9:.3g}"


def serving_table(machine: Machine, sizes: Sequence[str] = SIZES) -> str:
    """Serving in bfloat16 on one device: what it holds, and passes of autoregression and of blocks of 32."""
    rows, context = [], 4096
    for size in sizes:
        run = served(size, context)
        plan = server({size: run}, CPU, "bfloat16", 1, machine)
        [model], decoder = plan.models, Decoder.of(run, torch.bfloat16)
        times = [clock(decoder.seconds(machine, b, m, context)) for b, m in ((1, 1), (32, 1), (1, 32), (32, 32))]
        most = f"{plan.largest_batch:,}" if plan.largest_batch else "-"
        rows.append([size, gigabytes(model.weights), f"{model.cache_row / context / 1e3:.3g}", most, *times])
    head = ["preset", "weights, GB", "cache, kB a position", "full rows that fit", "b=1, m=1", "b=32, m=1"]
    title = (
        f"Serving on one {machine.name} in bfloat16: {context:,} cached positions a row, the least time of a pass of "
    )
    return _table(f"{title}b rows of m positions", [*head, "b=1, m=32", "b=32, m=32"], rows)


def served(size: str, context: int) -> Outline:
    """A preset with rows of this many positions."""
    return Outline.of(recipe_of(_question(size, length=context, batch_tokens=1 << 30)), False)


def growth_table(machine: Machine) -> str:
    """How the memory and the time of an update grow when one thing is doubled."""
    cases: dict[str, Callable[[Question], Question]] = {
        "as it is": lambda q: q,
        "batch x 2": lambda q: replace(q, batch_tokens=2 * BATCH),
        "length x 2, batch as before": lambda q: replace(q, length=2 * LENGTH),
        "length x 4, batch as before": lambda q: replace(q, length=4 * LENGTH),
        "vocabulary x 4": lambda q: replace(q, vocab_size=4 * 8192),
        "next size (1b)": lambda q: replace(q, preset=names()[names().index(GROWN) + 1], vocab_size=8192),
    }
    rows: list[list[str]] = []
    for name, change in cases.items():
        recipe = recipe_of(change(_question(GROWN)))
        kept = replace(recipe, train=replace(recipe.train, activation_checkpointing="none"))
        found = Planned.of(kept, CPU, machine)
        memory, update = found.memory(), step(found.outline, machine, "none")
        held = (memory.total, memory.activations, memory.logits)
        rows.append([name, *map(gigabytes, held), clock(update.seconds), f"{update.tokens_per_second:,.0f}"])
    head = ["what changes", "memory, GB", "activations", "logits", "update", "tokens/s"]
    return _table(f"Growth at {GROWN} on one {machine.name}, without activation checkpointing", head, rows)


def crossing_table(size: str = "8b", cached: int = 1024) -> str:
    """Tokens that a pass of m positions must write to be as fast as autoregression, by machine and batch."""
    decoder, rows = Decoder.of(served(size, 4096), torch.bfloat16), []
    for name in ("rtx4090", "a100", "h100", "h200"):
        for batch in (1, 8, 32, 128):
            values = [decoder.break_even(MACHINES[name], batch, m, cached) for m in (8, 32, 256)]
            rows.append([name, str(batch), *(f"{value:.2f}" for value in values)])
    title = (
        f"Break-even of {size} in bfloat16, {cached:,} cached positions: tokens that a pass of m positions has to write"
    )
    return _table(title, ["machine", "rows", "m=8", "m=32", "m=256"], rows)
