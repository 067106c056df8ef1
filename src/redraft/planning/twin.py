"""Twins: the network of a run with few blocks and no memory, on which updates and forward passes are counted.

The tensors of a twin have shapes and types but no numbers (torch's fake tensors). Operators on them run as they would
in training, autograd, autocast and checkpointing included, and compute nothing; a dispatch mode sees each of them. So
sizes are counted, not guessed, for every family and network, and an 8B shape takes as little memory as a small one.
What is counted grows linearly with blocks and with rows, so that twins of one and two blocks and rows give the rest.

The operators are those of a CPU. On an accelerator fused attention keeps a little less, and an ungated SwiGLU more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from redraft import config, models
from redraft.data.tokenizer import Tokenizer
from redraft.families import build_family
from redraft.likelihood import prepare_batch
from redraft.loading import outline, stored_dtype
from redraft.model import Model
from redraft.models.parts import lora as parts
from redraft.models.parts.frozen import freeze
from redraft.presets import shape as preset
from redraft.saving import public_names
from redraft.train.post_training import phases_of
from redraft.train.recipe import Recipe
from redraft.types import Batch, Prepared
from redraft.weights import TensorMap

T = TypeVar("T")
CPU = torch.device("cpu")
_BYTES = 8, 200  # range of the ids of a twin's rows: all of them are bytes
_LONGEST = 2048  # tokens of a twin's row: the masks of its attention have memory


@dataclass(frozen=True)
class Outline:
    """What of a run determines its memory and its time. No weights exist."""

    recipe: Recipe
    shape: Any  # Config of the network
    dtype: torch.dtype  # of frozen weights
    bfloat16: bool  # products are in bfloat16
    length: int  # of a row of a twin
    row: int  # tokens of a row of the run, which may be longer
    trained: int = 0  # weights that are trained
    frozen: int = 0  # weights that are not
    packed: int = 0  # frozen weights in the matrices of blocks
    stacked: int = 0  # weights of all blocks, frozen or not
    teacher: bool = False
    names: Mapping[str, TensorMap] | None = field(default=None, compare=False)  # ``Model.public``

    @classmethod
    def of(cls, recipe: Recipe, bfloat16: bool, start: Model | None = None) -> Outline:
        """The outline of a recipe's run.

        Args:
            start: the outline of the checkpoint that it starts from, if that is known.
        Raises:
            UserError: there is no such preset or checkpoint.
        """
        dtype, names = torch.float32, None
        if recipe.model.from_:
            with models.without_memory():
                known = start or outline(recipe.start)
                network = build_family(recipe.family)[1].network_for(known.network)
                shape, names = network.config, known.public if network is known.network else None
            if recipe.lora is not None:
                named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
                dtype = named.get(recipe.lora.base_dtype) or stored_dtype(recipe.start)
        else:
            size = Tokenizer.bytes().vocab_size if recipe.tokenizer.kind == "bytes" else recipe.tokenizer.vocab_size
            shape = preset(recipe.model.preset, size, recipe.model.network)
            changes = {"max_length": max(shape.max_length, recipe.data.length + 1), **recipe.model.config}
            shape = config.build(type(shape), config.to_mapping(shape) | changes, "[model.config]")
        row = min(recipe.data.length, recipe.train.batch_tokens, shape.max_length)
        return cls(recipe, shape, dtype, bfloat16, min(row, _LONGEST), row, names=names)._counted()

    def smaller(self, layers: int, rows: int) -> Outline:
        """The outline of a run with other numbers of blocks, and of rows of a twin in an update."""
        table = replace(self.recipe.train, batch_tokens=rows * self.length, accumulate=1)
        shape = self.shape.smaller(layers, self.shape.vocab_size)
        return replace(self, recipe=replace(self.recipe, train=table), shape=shape, row=self.length)._counted()

    def _counted(self) -> Outline:
        """With the numbers of weights."""
        recipe, whole = self.recipe, self.whole()
        blocks = [p for block in whole.network.all_blocks() for p in block.parameters()]
        trained = sum(p.numel() for p in whole.network.parameters() if p.requires_grad)
        return replace(
            self,
            trained=trained,
            frozen=whole.network.parameter_count - trained,
            packed=sum(p.numel() for p in blocks if not p.requires_grad),
            stacked=sum(p.numel() for p in blocks),
            teacher=recipe.lora is None and phases_of(recipe, whole.family, whole)[-1].objective.needs_teacher,
        )

    @property
    def key(self) -> str:
        """What the twins are made from: runs with equal keys have equal twins."""
        recipe = self.recipe
        parts = (self.shape.name, self.shape, self.dtype, self.bfloat16, self.length, recipe.family, recipe.lora)
        return repr((*parts, bool(recipe.model.from_)))

    @property
    def parameters(self) -> int:
        """All weights, adapters included."""
        return self.trained + self.frozen

    @property
    def compute(self) -> torch.dtype:
        """The type of matrix products."""
        return torch.bfloat16 if self.bfloat16 else torch.float32

    def autocast(self) -> Any:
        """The context in which the network computes."""
        return torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()

    def whole(self) -> Model:
        """The whole network with the run's adapters, on the device ``meta``."""
        with models.without_memory():
            made = self._whole()
            made.network.requires_grad_(True)
            if self.recipe.lora is not None:
                parts.attach(made.network, self.recipe.lora, self._names(made))
        return made

    def _whole(self) -> Model:
        made = self._made(self.shape)
        made.network = models.build(made.network.config.smaller(self.shape.layers, self.shape.vocab_size))
        return made

    def twin(self, layers: int, mode: str, memory: bool) -> Model:
        """The network in training, with ``layers`` blocks, a byte vocabulary and the run's adapters.

        Args:
            mode: its activation checkpointing. memory: real tensors instead of fake ones.
        """
        with models.without_memory():
            made = self._made(self.shape.smaller(layers, Tokenizer.bytes().vocab_size))
        with nullcontext() if memory else FakeTensorMode(allow_non_fake_inputs=True):
            self._allocate(made, mode)
        return made

    def replica(self, mode: str) -> Model:
        """The network in training with all of its blocks and its vocabulary, random weights, adapters and packing.

        Args:
            mode: its activation checkpointing.
        """
        with models.without_memory():
            made = self._whole()
        self._allocate(made, mode, self.recipe.lora.packing if self.recipe.lora else "", random=True)
        return made

    def _allocate(self, made: Model, mode: str, packing: str = "", random: bool = False) -> None:
        """Give a network memory, adapters, and what it needs to be trained."""
        for network in (made.network, made.network.companion):
            if network is not None:
                models.allocate(network, self.dtype, CPU)
                for weight in network.parameters() if random else ():
                    weight.data.normal_(0.0, 0.02) if weight.ndim > 1 else weight.data.fill_(1.0)
        made.network.requires_grad_(True)
        if self.recipe.lora is not None:
            with torch.random.fork_rng(devices=[]):
                parts.attach(made.network, self.recipe.lora, public_names(made))
            freeze(made.network, packing)
        made.network.activation_checkpointing = mode  # type: ignore[assignment] # one of its choices
        made.network.train()

    def prepared(self, twin: Model, rows: int, seed: int = 0) -> Prepared:
        """A batch of rows of this length as the last phase's objective prepares it: half of a pair is its prompt.

        Args:
            seed: of the noise.
        """
        ids = torch.randint(*_BYTES, (rows, self.length), generator=torch.Generator().manual_seed(0))
        target = torch.ones_like(ids, dtype=torch.bool)
        prompt = self.length // 2 if twin.paired else 1  # of plain text, all but the first token
        target[:, :prompt] = False
        prompts = torch.full((rows,), prompt) if twin.paired else None
        batch = Batch(ids, target, torch.ones_like(target), prompts, torch.full((rows,), self.length))
        objective = twin.family.phases()[-1].objective
        networks = {"main": twin.network, "teacher": twin.network}
        return prepare_batch(objective, batch, twin.spec, torch.Generator().manual_seed(seed), networks)[0]

    def _names(self, made: Model) -> Mapping[str, TensorMap]:
        """The public names of a twin's tensors: those of the checkpoint, where the twin has them."""
        if self.names is not None:
            own = dict(made.network.named_parameters())
            made.public = {name: place for name, place in self.names.items() if place.name in own}
        return public_names(made)

    def _made(self, shape: Any) -> Model:
        """A model of this shape with a byte vocabulary, as the recipe's family needs it."""
        name, family = build_family(self.recipe.family)
        tokenizer = Tokenizer.bytes().with_special_tokens(family.specials)
        spec = family.spec(tokenizer)
        if not self.recipe.model.from_:
            shape = family.network_config(shape)
        wanted = {"vocab_size": spec.tokens.vocab_size, "shift": spec.network.shift, "timed": spec.network.timed}
        wanted |= {"edits": spec.edits, "self_conditioning": spec.network.self_conditioning != 0}
        known = {field: value for field, value in wanted.items() if shape.has_field(field)}
        network = models.build(replace(shape, **known))
        return Model(network, tokenizer, family, name, paired=network.needs_prompt)


@dataclass(frozen=True)
class Case:
    """A run and its activation checkpointing; equal if its twins are."""

    key: str
    mode: str
    run: Outline = field(compare=False)


def counted(count: Callable[[bool], T]) -> T:
    """``count(False)``, which works on tensors without memory; with real ones where the numbers decide what runs.

    So a mixture of experts, which sends each token to its experts, is counted on a twin that has memory.
    """
    try:
        return count(False)
    except (DataDependentOutputException, DynamicOutputShapeException):
        return count(True)


@dataclass(frozen=True)
class Linear:
    """A quantity that is linear in the numbers of blocks and of rows, and in their product."""

    fixed: float
    layer: float
    row: float
    row_layer: float

    @classmethod
    def through(cls, at: Callable[[int, int], float]) -> Linear:
        """The function with the values ``at(layers, rows)`` for one and two blocks and rows."""
        one, wide, deep, both = at(1, 1), at(1, 2), at(2, 1), at(2, 2)
        row_layer = both - deep - wide + one
        row, layer = wide - one - row_layer, deep - one - row_layer
        return cls(one - layer - row - row_layer, layer, row, row_layer)

    def of(self, layers: float, rows: float) -> float:
        """Its value."""
        return self.fixed + self.layer * layers + rows * (self.row + self.row_layer * layers)
