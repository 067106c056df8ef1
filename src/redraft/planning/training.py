"""The memory that a training run will need, before anything is loaded: what fits, and what to change if it doesn't.

Weights, gradients, optimizer state and averages follow from the shapes. Activations are counted on a twin
(``planning.twin``), and logits follow from ``objectives.shared.vocabulary``. A run has phases, and each has its peak:

    preparation   weights that are read; then texts that become a vocabulary and tokens (``planning.texts``)
    updates       optimizer state and averages, and the greater of
                      the start of the backward pass: activations, and then logits or what the backward pass of a
                      block takes; with ``accumulate`` also the gradients of earlier batches
                      its end: gradients, and what the backward pass of a block takes
    validation    optimizer state and averages, what a forward pass over 8,192 tokens takes, and logits of one part

Several processes also copy their state when they save it, and go on meanwhile. The greatest peak is added to what is
always there: the process, weights and tokenised texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from redraft import runtime
from redraft.errors import UserError
from redraft.evaluation.memory import available
from redraft.host_memory import readable
from redraft.loading import outline
from redraft.model import Model
from redraft.objectives.shared import vocabulary
from redraft.planning.activations import Activations
from redraft.planning.machine import Machine, process_bytes
from redraft.planning.parallel import ALONE, Parallel
from redraft.planning.texts import UNKNOWN, Texts
from redraft.planning.twin import Outline
from redraft.train.process import use_bfloat16
from redraft.train.recipe import Recipe
from redraft.train.setup import VALIDATION_TOKENS

MODES = ("none", "selective", "full")
_SPARE = 0.95  # of the available memory may be used
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.02}  # of the two moments of a number
_RANKS = 50 << 20  # bytes of the modules and connections of torch.distributed, which a run imports when it has begun
_HOLES = 0.25  # of what comes and goes in glibc's heap, as runs of 1M parameters on two threads had them
_PACKED_BYTES = {"int8": 1.01, "nf4": 0.5625}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run needs at its peak on each device, by what holds them."""

    device: str
    available: int | None  # None: this system doesn't say
    process: int  # Python and libraries; 0 on an accelerator
    weights: int
    texts: int  # tokenised; 0 on an accelerator
    optimizer: int
    averages: int  # averaged and best weights, and the teacher of a distillation
    gradients: int
    activations: int  # that the forward pass keeps
    backward: int  # of a block's backward pass
    logits: int
    validation: int  # of a forward pass over validation rows, and its logits
    loading: int  # more than ``weights``, while they are read
    preparation: int  # of texts that are tokenised, besides ``texts``
    saving: int  # copies of the state that are being written while training goes on
    gathered: int  # weights and gradients of other devices' shards, while they are used
    holes: float  # freed memory between live tensors in the heap of a process, as a share of what updates make and free
    accumulates: bool  # gradients of earlier batches are there when activations are
    checkpointing: str
    batch_tokens: int
    largest_batch: int = 0  # tokens; 0: not known

    @property
    def update(self) -> int:
        """Bytes that an update makes and frees again, at their peak: at the start of the backward pass, or its end."""
        begin = self.activations + max(self.logits, self.backward) + self.accumulates * self.gradients
        return max(begin, self.gradients + self.backward)

    @property
    def phases(self) -> dict[str, int]:
        """Bytes at the peak of each phase of the run."""
        always = self.process + self.weights + self.texts
        state = always + self.optimizer + self.averages + self.gathered + self.saving
        return {
            "preparation": always + max(self.loading, self.preparation),
            "updates": state + int((1 + self.holes) * self.update),
            "validation": state + int((1 + self.holes) * self.validation),
        }

    @property
    def total(self) -> int:
        """Bytes at the peak."""
        return max(self.phases.values())

    def __str__(self) -> str:
        return self.line()

    def line(self, label: str = "") -> str:
        """The plan in words, of the run that ``label`` names."""
        names = ("weights", "optimizer", "averages", "gradients", "activations", "logits", "gathered", "process")
        held = [f"{name} {readable(getattr(self, name))}" for name in names if getattr(self, name)]
        room = "" if self.available is None else f" of {readable(self.available)} available on {self.device}"
        how = "" if self.checkpointing == "none" else f" ({self.checkpointing} activation checkpointing)"
        largest = f"; largest batch {self.largest_batch:,} tokens" if self.largest_batch else ""
        peaks = ", ".join(f"{readable(size)} in {name}" for name, size in self.phases.items())
        start = f"memory   {label + ': ' if label else ''}{readable(self.total)}{room}{how}"
        return f"{start}: {', '.join(held)}; peaks: {peaks}{largest}"

    @property
    def fits(self) -> bool:
        """Is the memory available?"""
        return self.available is None or self.total <= _SPARE * self.available

    def to_json(self) -> dict[str, Any]:
        """Plain values, in bytes."""
        return {**dataclasses.asdict(self), "phases": self.phases, "total": self.total, "fits": self.fits}


def plan(
    recipe: Recipe,
    device: torch.device,
    machine: Machine | None = None,
    parallel: Parallel = ALONE,
    texts: Texts = UNKNOWN,
) -> MemoryPlan:
    """The memory of a run, with the least activation checkpointing that fits unless the recipe names one.

    Args:
        machine: plan for this one instead of ``device``.
        parallel: how several devices share the run.
        texts: of the training, which this process need not hold any more.
    """
    return Planned.of(recipe, device, machine, parallel, texts).memory()


def fitted(
    recipe: Recipe, device: torch.device, parallel: Parallel = ALONE, texts: Texts = UNKNOWN
) -> tuple[Recipe, MemoryPlan]:
    """The recipe with its activation checkpointing chosen, and the plan of its memory.

    Args:
        parallel: how several devices share the run.
        texts: of the training, which this process need not hold any more.
    Raises:
        UserError: it can't fit; names what would help.
    """
    found = plan(recipe, device, parallel=parallel, texts=texts)
    require(recipe, found)
    table = replace(recipe.train, activation_checkpointing=found.checkpointing)
    return replace(recipe, train=table), found


def require(recipe: Recipe, found: MemoryPlan) -> None:
    """Check that a run fits.

    Raises:
        UserError: it can't; names what would help.
    """
    if not found.fits:
        assert found.available is not None
        what = f"Training needs {readable(found.total)} of memory, and {readable(found.available)} are available."
        raise UserError(what, remedy(recipe, found))


def remedy(recipe: Recipe, found: MemoryPlan) -> str:
    """What would make a run fit that doesn't, as a sentence."""
    ways = []
    if found.largest_batch:
        ways.append(f"lower the batch (--set train.batch_tokens={found.largest_batch}, and raise train.accumulate)")
    if recipe.lora is None and recipe.model.from_:
        ways.append("train an adapter (--lora-rank 8)")
    elif recipe.lora is not None and not recipe.lora.packing:
        ways.append("pack the base (--base-dtype int8 or nf4)")
    if recipe.lora is None and recipe.train.optimizer == "adamw":
        ways.append("use 8-bit moments (--set train.optimizer=adamw8bit)")
    if found.phases["validation"] == found.total:
        ways.append("leave out validation (--set train.validation_rows=0)")
    text = ", or ".join(ways) or "use a smaller model"
    return f"{text[0].upper()}{text[1:]}."


def _largest(at: Callable[[int], MemoryPlan]) -> int:
    """The largest batch that fits, in tokens, to about 5 %; 0 if none does, or if the memory is not known."""
    low, high = 0, 64
    if at(high).available is None:
        return 0
    while at(high).fits and high < 1 << 30:
        low, high = high, 2 * high
    while high - low > max(32, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).fits else (low, middle)
    return low


@dataclass(frozen=True)
class Planned:
    """A run's outline on a machine."""

    outline: Outline
    device: str
    process: int | None  # None: as this process takes when it has planned
    available: int | None
    parallel: Parallel
    start: Model | None = None  # whose tokenizer this process then holds
    texts: Texts = UNKNOWN

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        device: torch.device,
        machine: Machine | None = None,
        parallel: Parallel = ALONE,
        texts: Texts = UNKNOWN,
    ) -> Planned:
        """The outline of a recipe's run on ``machine``, or else on a device of this one.

        Raises:
            UserError: there is no such preset or checkpoint.
        """
        if machine is not None:
            bfloat16 = recipe.train.dtype == "bfloat16" or (recipe.train.dtype == "auto" and machine.prefers_bfloat16)
            there = int(machine.memory), 0 if machine.accelerator else process_bytes(fresh=True)
            return cls(Outline.of(recipe, bfloat16), machine.name, there[1], there[0], parallel, None, texts)
        start = outline(recipe.start) if recipe.model.from_ else None
        run = Outline.of(recipe, use_bfloat16(recipe.train.dtype, device), start)
        room = available(device)
        if device.type == "cpu" and room is not None:
            room //= parallel.on_this_machine  # which have the memory of the machine in common
        return cls(run, str(device), None if device.type == "cpu" else 0, room, parallel, start, texts)

    def memory(self) -> MemoryPlan:
        """The plan, with the least activation checkpointing that fits unless the recipe names one."""
        recipe, found, process = self.outline.recipe, None, self.process
        wanted = recipe.train.activation_checkpointing
        for mode in MODES if wanted == "auto" else (wanted,):
            cost = Activations.of(self.outline, mode)
            process = process_bytes() if process is None else process
            found = self._at(cost, mode, recipe.train.batch_tokens, process)
            if found.fits:
                break
        assert found is not None
        runtime.release_memory()
        return replace(found, largest_batch=_largest(lambda tokens: self._at(cost, mode, tokens, process or 0)))

    # ---- from shapes

    def _at(self, cost: Activations, mode: str, batch_tokens: int, process: int) -> MemoryPlan:
        """The plan with batches of so many tokens on each device."""
        run, recipe, share = self.outline, self.outline.recipe, self.parallel.share
        train, lora = recipe.train, recipe.lora
        dense = weights = run.frozen * run.dtype.itemsize + 4 * run.trained
        if lora is not None and lora.packing:
            weights -= int(run.packed * (run.dtype.itemsize - _PACKED_BYTES[lora.packing]))
        copies, layers, rows = bool(train.ema) + train.keep_best, run.shape.layers, batch_tokens / run.length
        gathers_low = self.parallel.shards and run.bfloat16
        kept = replace(cost.kept, layer=0.0) if gathers_low else cost.kept  # without copies of blocks' weights
        checked = max(VALIDATION_TOKENS, run.length) if train.validation_rows else 0
        return MemoryPlan(
            device=self.device,
            available=self.available,
            process=process + (_RANKS if process and self.parallel.workers > 1 else 0),
            weights=share(weights),
            texts=self.texts.tokenised(recipe) if process else 0,
            optimizer=share(_OPTIMIZER_BYTES[train.optimizer] * run.trained),
            averages=share(4 * copies * run.trained + run.teacher * weights),
            gradients=share(4 * run.trained),
            activations=int(kept.of(layers, rows)),
            backward=int(cost.backward.of(1, rows)),
            logits=self._logits(round(rows * cost.targets), trains_head=lora is None),
            validation=int(cost.forward.of(layers, checked / run.length)) + self._scored(checked),
            loading=dense - weights,
            preparation=self.texts.preparation(recipe) if process else 0,
            saving=self._saved(copies) if process else 0,
            gathered=self.parallel.gathered(run),
            holes=_HOLES if process else 0.0,  # an accelerator's allocator is not planned
            accumulates=train.accumulate > self.parallel.workers,  # who share the batches of an update out
            checkpointing=mode,
            batch_tokens=batch_tokens,
        )

    def _saved(self, copies: int) -> int:
        """Bytes of the state that each of several processes copies; one process writes it from where it is."""
        if self.parallel.workers == 1:
            return 0
        moments = _OPTIMIZER_BYTES[self.outline.recipe.train.optimizer]
        return self.parallel.share((4 * (1 + copies) + moments) * self.outline.trained)

    def _logits(self, targets: int, trains_head: bool) -> int:
        """Logits of one part, and the copies of the output projection that it needs."""
        compute, head = self.outline.compute, self._head
        copies = head * (4 + compute.itemsize) if trains_head else self._cast
        return vocabulary.part_rows(targets, self._width) * self._width * compute.itemsize + copies

    def _scored(self, targets: int) -> int:
        """Logits of one part of the target positions of a validation batch, and a copy of the output projection."""
        if not targets:
            return 0
        rows = min(targets, vocabulary.part_rows(targets, self._width, scored=True))
        return rows * self._width * self.outline.compute.itemsize + self._cast

    @property
    def _width(self) -> int:
        """Logits of a position."""
        return int(self.outline.shape.vocab_size) * (2 if self.outline.shape.edits else 1)

    @property
    def _head(self) -> int:
        """Weights of the output projection."""
        return int(self.outline.shape.vocab_size * self.outline.shape.dim)

    @property
    def _cast(self) -> int:
        """Bytes of its copy in the type of products, if it has another."""
        return self._head * self.outline.compute.itemsize if self.outline.compute != self.outline.dtype else 0
