"""The memory that a training run will need, before anything is loaded: what fits, and what to change if it doesn't.

Weights, gradients, optimizer state and averages follow from the shapes. Activations are counted, not guessed: the
update runs on a *twin*, the same network with one and with two blocks, a byte vocabulary and memory that holds no
weights, and ``LiveBytes`` sums the tensors that are alive. The numbers grow linearly with blocks and rows. Logits
follow from ``objectives.shared.vocabulary``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from redraft import models, runtime
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.memory import LiveBytes, available
from redraft.families import build_family
from redraft.host_memory import readable, resident
from redraft.likelihood import prepare_batch
from redraft.loading import outline, stored_dtype
from redraft.model import Model
from redraft.models.parts import lora as parts
from redraft.models.parts.frozen import freeze
from redraft.objectives.shared import vocabulary
from redraft.presets import shape as preset
from redraft.saving import public_names
from redraft.train.post_training import phases_of
from redraft.train.process import use_bfloat16
from redraft.train.recipe import Recipe
from redraft.types import Batch

MODES = ("none", "selective", "full")
_RUNTIME = 100 << 20  # bytes that torch's libraries take when they first compute
_SPARE = 0.95  # of the available memory may be used
_OPTIMIZER_BYTES = {"adamw": 8.0, "adamw8bit": 2.02}  # of the two moments of a number
_PACKED_BYTES = {"int8": 1.01, "nf4": 0.5625}


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run needs at its peak, by what holds them."""

    device: str
    available: int | None  # None: this system doesn't say
    process: int  # Python and libraries; 0 on an accelerator
    weights: int
    optimizer: int
    averages: int  # averaged and best weights, and the teacher of a distillation
    gradients: int
    activations: int
    logits: int
    loading: int  # more than ``weights``, while they are read
    checkpointing: str
    batch_tokens: int
    largest_batch: int = 0  # tokens; 0: not known

    @property
    def total(self) -> int:
        """Bytes at the peak. Gradients are made while activations are freed."""
        fixed = self.process + self.weights
        working = max(self.activations + self.logits, self.gradients)
        return fixed + max(self.loading, self.optimizer + self.averages + working)

    def __str__(self) -> str:
        names = ("weights", "optimizer", "averages", "gradients", "activations", "logits", "process")
        held = [f"{name} {readable(getattr(self, name))}" for name in names if getattr(self, name)]
        room = "" if self.available is None else f" of {readable(self.available)} available on {self.device}"
        how = "" if self.checkpointing == "none" else f" ({self.checkpointing} activation checkpointing)"
        largest = f"; largest batch {self.largest_batch:,} tokens" if self.largest_batch else ""
        return f"memory   {readable(self.total)}{room}{how}: {', '.join(held)}{largest}"

    @property
    def fits(self) -> bool:
        """Is the memory available?"""
        return self.available is None or self.total <= _SPARE * self.available

    def to_json(self) -> dict[str, Any]:
        """Plain values, in bytes."""
        return {**dataclasses.asdict(self), "total": self.total, "fits": self.fits}


def plan(recipe: Recipe, device: torch.device) -> MemoryPlan:
    """The memory of a run, with the least activation checkpointing that fits unless the recipe names one."""
    run = _Outline.of(recipe, device)
    wanted = recipe.train.activation_checkpointing
    found = None
    for mode in MODES if wanted == "auto" else (wanted,):
        cost = run.activations(mode)
        found = run.at(cost, mode, recipe.train.batch_tokens)
        if found.fits:
            break
    assert found is not None
    runtime.release_memory()  # of the twins
    return replace(found, largest_batch=_largest(lambda tokens: run.at(cost, mode, tokens)))


def fitted(recipe: Recipe, device: torch.device) -> tuple[Recipe, MemoryPlan]:
    """The recipe with its activation checkpointing chosen, and the plan of its memory.

    Raises:
        UserError: it can't fit; names what would help.
    """
    found = plan(recipe, device)
    if not found.fits:
        assert found.available is not None
        what = f"Training needs {readable(found.total)} of memory, and {readable(found.available)} are available."
        raise UserError(what, _remedy(recipe, found))
    table = replace(recipe.train, activation_checkpointing=found.checkpointing)
    return replace(recipe, train=table), found


def _remedy(recipe: Recipe, found: MemoryPlan) -> str:
    ways = []
    if found.largest_batch:
        ways.append(f"lower the batch (--set train.batch_tokens={found.largest_batch}, and raise train.accumulate)")
    if recipe.lora is None and recipe.model.from_:
        ways.append("train an adapter (--lora-rank 8)")
    elif recipe.lora is not None and not recipe.lora.packing:
        ways.append("pack the base (--base-dtype int8 or nf4)")
    if recipe.lora is None and recipe.train.optimizer == "adamw":
        ways.append("use 8-bit moments (--set train.optimizer=adamw8bit)")
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
class _Activations:
    """Bytes for a row: c_0 + c_1 layers + rows (r_0 + r_1 layers), of which the twin gave the coefficients."""

    fixed: float
    layer: float
    row: float
    row_layer: float
    passing: float  # of the backward pass, at its peak
    passing_row: float

    def of(self, layers: float, rows: float) -> int:
        kept = self.fixed + self.layer * layers + rows * (self.row + self.row_layer * layers)
        return int(kept + self.passing + self.passing_row * rows)


@dataclass(frozen=True)
class _Outline:
    """What of a run determines its memory."""

    recipe: Recipe
    device: torch.device
    shape: Any  # Config of the network
    dtype: torch.dtype  # of frozen weights
    bfloat16: bool  # products are in bfloat16
    length: int  # of a row
    trained: int = 0  # weights that are trained
    frozen: int = 0  # weights that are not
    packed: int = 0  # frozen weights in the matrices of blocks
    teacher: bool = False
    process: int = 0  # bytes of Python and libraries
    available: int | None = None

    @classmethod
    def of(cls, recipe: Recipe, device: torch.device) -> _Outline:
        low, dtype = use_bfloat16(recipe.train.dtype, device), torch.float32
        if recipe.model.from_:
            with models.without_memory():
                shape = build_family(recipe.family)[1].network_for(outline(recipe.start).network).config
            if recipe.lora is not None:
                named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
                dtype = named.get(recipe.lora.base_dtype) or stored_dtype(recipe.start)
        else:
            size = Tokenizer.bytes().vocab_size if recipe.tokenizer.kind == "bytes" else recipe.tokenizer.vocab_size
            shape = replace(preset(recipe.model.preset, size, recipe.model.network), **recipe.model.config)
        length = min(recipe.data.length, recipe.train.batch_tokens, shape.max_length)
        found = cls(recipe, device, shape, dtype, low, length)
        whole = found._shapes()
        trained = sum(p.numel() for p in whole.network.parameters() if p.requires_grad)
        blocks = (p for block in whole.network.all_blocks() for p in block.parameters())
        return replace(
            found,
            trained=trained,
            frozen=whole.network.parameter_count - trained,
            packed=sum(p.numel() for p in blocks if not p.requires_grad),
            teacher=recipe.lora is None and phases_of(recipe, whole.family, whole)[-1].objective.needs_teacher,
            process=resident() + _RUNTIME if device.type == "cpu" else 0,
            available=available(device),
        )

    # ---- from shapes

    def at(self, cost: _Activations, mode: str, batch_tokens: int) -> MemoryPlan:
        """The plan with batches of so many tokens."""
        train, lora = self.recipe.train, self.recipe.lora
        dense = weights = self.frozen * self.dtype.itemsize + 4 * self.trained
        if lora is not None and lora.packing:
            weights -= int(self.packed * (self.dtype.itemsize - _PACKED_BYTES[lora.packing]))
        copies = bool(train.ema) + train.keep_best
        return MemoryPlan(
            device=str(self.device),
            available=self.available,
            process=self.process,
            weights=weights,
            optimizer=int(_OPTIMIZER_BYTES[train.optimizer] * self.trained),
            averages=4 * copies * self.trained + self.teacher * weights,
            gradients=4 * self.trained,
            activations=cost.of(self.shape.layers, batch_tokens / self.length),
            logits=self._logits(batch_tokens, trains_head=lora is None),
            loading=dense - weights,
            checkpointing=mode,
            batch_tokens=batch_tokens,
        )

    def _logits(self, targets: int, trains_head: bool) -> int:
        """Logits of one part, and the copies of the output projection that it needs."""
        width = self.shape.vocab_size * (2 if self.shape.edits else 1)
        rows = targets if targets * width <= vocabulary.WHOLE else max(1, vocabulary.PART // width)
        compute = torch.bfloat16 if self.bfloat16 else torch.float32
        head, copies = self.shape.vocab_size * self.shape.dim, 0
        if trains_head:
            copies = head * (4 + compute.itemsize)
        elif compute != self.dtype:
            copies = head * compute.itemsize
        return rows * width * compute.itemsize + copies

    # ---- from the twin

    def activations(self, mode: str) -> _Activations:
        """What a block and a row add to the activations."""
        kept = {(layers, rows): self._kept(layers, rows, mode) for layers in (1, 2) for rows in (1, 2)}
        row_layer = kept[2, 2] - kept[2, 1] - kept[1, 2] + kept[1, 1]
        row = kept[1, 2] - kept[1, 1] - row_layer
        layer = kept[2, 1] - kept[1, 1] - row_layer
        fixed = kept[1, 1] - layer - row - row_layer
        one, two = (self._passing(rows, mode, kept[1, rows]) for rows in (1, 2))
        return _Activations(fixed, layer, row, row_layer, max(2 * one - two, 0), max(two - one, 0))

    def _kept(self, layers: int, rows: int, mode: str) -> int:
        """Bytes alive after the forward pass of a twin."""
        twin, prepared, live = self._ready(layers, rows, mode)
        with live, self._autocast():
            states = twin.network.states(prepared.request)
            found = live.now
            del states
        return found

    def _passing(self, rows: int, mode: str, kept: int) -> int:
        """Bytes that the backward pass of a twin with one block needs besides what the forward pass kept."""
        twin, prepared, live = self._ready(1, rows, mode)
        objective = twin.family.phases()[-1].objective
        with live:
            vocabulary.backward(twin.network, objective, prepared, 1.0, self.bfloat16)
        gradients = sum(p.grad.nbytes for p in twin.network.parameters() if p.grad is not None)
        return max(live.peak - kept - gradients, 0)

    def _ready(self, layers: int, rows: int, mode: str) -> tuple[Model, Any, LiveBytes]:
        twin = self._twin(layers)
        twin.network.activation_checkpointing = mode  # type: ignore[assignment] # one of MODES
        twin.network.train()
        ids = torch.randint(8, 200, (rows, self.length))
        target = torch.ones_like(ids, dtype=torch.bool)
        prompt = self.length // 2 if twin.paired else 1  # of plain text, all but the first token
        target[:, :prompt] = False
        prompts = torch.full((rows,), prompt) if twin.paired else None
        batch = Batch(ids, target, torch.ones_like(target), prompts, torch.full((rows,), self.length))
        objective = twin.family.phases()[-1].objective
        networks = {"main": twin.network, "teacher": twin.network}
        prepared, _ = prepare_batch(objective, batch, twin.spec, torch.Generator().manual_seed(0), networks)
        return twin, prepared, LiveBytes(twin.network)

    def _shapes(self) -> Model:
        """The whole network with the run's adapters, on the device ``meta``."""
        with models.without_memory():
            made = self._made(self.shape)
            made.network = models.build(made.network.config.smaller(self.shape.layers, self.shape.vocab_size))
            made.network.requires_grad_(True)
            if self.recipe.lora is not None:
                parts.attach(made.network, self.recipe.lora, public_names(made))
        return made

    def _twin(self, layers: int) -> Model:
        """The network with ``layers`` blocks, a byte vocabulary and the run's adapters; its weights hold nothing."""
        with models.without_memory():
            made = self._made(self.shape.smaller(layers, Tokenizer.bytes().vocab_size))
        models.allocate(made.network, self.dtype, self.device)
        if made.network.companion is not None:
            models.allocate(made.network.companion, self.dtype, self.device)
        made.network.requires_grad_(True)
        if self.recipe.lora is not None:
            with torch.random.fork_rng(devices=[]):
                parts.attach(made.network, self.recipe.lora, public_names(made))
            freeze(made.network)
        return made

    def _made(self, shape: Any) -> Model:
        """A model of this shape with a byte vocabulary, as the recipe's family needs it."""
        name, family = build_family(self.recipe.family)
        tokenizer = Tokenizer.bytes().with_special_tokens(family.specials)
        spec = family.spec(tokenizer)
        if not self.recipe.model.from_:
            shape = family.network_config(shape)
        wanted = {"vocab_size": spec.tokens.vocab_size, "shift": spec.network.shift, "timed": spec.network.timed}
        wanted |= {"edits": spec.edits, "self_conditioning": spec.network.self_conditioning > 0}
        known = {field: value for field, value in wanted.items() if shape.has_field(field)}
        network = models.build(replace(shape, **known))
        return Model(network, tokenizer, family, name, paired=network.needs_prompt)

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else nullcontext()
