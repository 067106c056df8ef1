"""The time of a training update: the roofline of each operator, the optimizer, and what devices send to each other.

An operator takes max(FLOP / F, bytes / W), where bytes are those of its inputs and outputs, and the host takes some
microseconds for each. Operators are counted on twins (``planning.twin``), the backward pass and the recomputation of
checkpointed blocks included. Named machines reach a share of their data sheets (``Machine.reached``). This machine is
measured, and its pace, too (``planning.timing``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from redraft.objectives.shared import vocabulary
from redraft.planning.machine import Machine
from redraft.planning.parallel import ALONE, Parallel
from redraft.planning.twin import Case, Linear, Outline, counted

_OPTIMIZER_PASSES = {"adamw": 7, "adamw8bit": 4}  # float32 numbers read and written for each weight
_LOGIT_PASSES = 9  # reads and writes of each logit in the loss: cast, maximum, exponential, sum, gradient
_CLIPPING, _AVERAGING = 1, 3  # likewise: the norm of the gradient, and the averaged weights

_ATEN = torch.ops.aten
_FREE = {_ATEN._unsafe_view, _ATEN.empty, _ATEN.empty_like, _ATEN.new_empty, _ATEN.empty_strided}  # touch no memory
_LOOKUPS = {_ATEN.embedding, _ATEN.index, _ATEN.gather, _ATEN.index_select}  # read as much as they write


@dataclass(frozen=True)
class StepPlan:
    """Seconds of an update on each device, and its tokens over all of them."""

    machine: str
    workers: int
    tokens: int  # of all devices
    products: float  # matrix products and attention
    vectors: float  # everything else on the device
    host: float  # launching operators
    optimizer: float
    communication: float
    overlaps: bool  # devices send while they compute
    flops: float  # of the model and tokens of one device: 3 forward passes, without recomputation
    peak: float  # FLOP/s of the machine
    sent: dict[str, float]  # bytes that each device sends
    pace: float = 1.0  # measured seconds of an update over those of the roofline; 1.0: not measured

    @property
    def compute(self) -> float:
        """Seconds of one device by itself. An accelerator works while the host launches; a CPU does both in turn."""
        device = self.products + self.vectors
        return (max(device, self.host) if self.overlaps else device + self.host) + self.optimizer

    @property
    def seconds(self) -> float:
        """Seconds of an update. Where devices send while they compute, the longer of the two counts."""
        if self.overlaps:
            return max(self.compute, self.communication)
        return self.compute + self.communication

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all devices."""
        return self.tokens / self.seconds

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation (MFU, Chowdhery et al. 2022, arXiv:2204.02311)."""
        return self.flops / self.seconds / self.peak

    def to_json(self) -> dict[str, Any]:
        """Plain values, in seconds and bytes."""
        return {
            **vars(self),
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "utilisation": self.utilisation,
        }


def step(run: Outline, machine: Machine, mode: str, parallel: Parallel = ALONE, pace: float = 1.0) -> StepPlan:
    """The time of an update of a run.

    Args:
        mode: its activation checkpointing.
        pace: how many times longer than the roofline the machine takes (``planning.timing``).
    """
    train = run.recipe.train
    rows, speed = train.batch_tokens / run.length, machine.flops(run.bfloat16)
    found = _operators(Case(run.key, mode, run))
    batches = -(-train.accumulate // parallel.workers)  # of each device: they share those of an update out
    work = {name: batches * max(part.of(run.shape.layers, rows), 0.0) for name, part in found.items()}
    flops = work["flops"] + work["attention"] * run.row / run.length
    numbers = _OPTIMIZER_PASSES[train.optimizer] + _CLIPPING * bool(train.clip) + _AVERAGING * bool(train.ema)
    bandwidth, sent = machine.bandwidth * machine.streamed, parallel.sent(run)
    return StepPlan(
        machine=machine.name,
        workers=parallel.workers,
        tokens=train.batch_tokens * batches * parallel.workers,
        products=pace * max(flops / (speed * machine.reached), work["product_bytes"] / bandwidth),
        vectors=pace * work["vector_bytes"] / bandwidth,
        host=pace * work["launches"] * machine.launch,
        optimizer=pace * parallel.share(4.0 * numbers * run.trained) / bandwidth,
        communication=sum(sent.values()) / machine.link,
        overlaps=machine.overlaps,
        flops=_model_flops(run, rows) * batches,
        peak=speed,
        sent=sent,
        pace=pace,
    )


def _model_flops(run: Outline, rows: float) -> float:
    """Operations of learning from a batch; adapters are counted as if all weights were trained."""
    prepared = counted(lambda memory: run.prepared(run.twin(1, "none", memory), 1))
    return run.whole().network.forward_cost().of_training(prepared) * rows


@lru_cache(maxsize=256)
def _operators(case: Case) -> dict[str, Linear]:
    """Operations, bytes and operators of an update, as functions of blocks and rows. Equal runs are counted once."""
    return counted(lambda memory: _counts(case.run, case.mode, memory))


def _counts(run: Outline, mode: str, memory: bool) -> dict[str, Linear]:
    seen: dict[tuple[int, int], Operators] = {}

    def at(layers: int, rows: int, name: str) -> float:
        if (layers, rows) not in seen:
            seen[layers, rows] = _update(run, layers, rows, mode, memory)
        return float(vars(seen[layers, rows])[name])

    names = ("flops", "attention", "product_bytes", "vector_bytes", "launches")
    found = {name: Linear.through(_named(at, name)) for name in names}
    launched = found["launches"]  # as many for a large batch as for a small one
    return {**found, "launches": Linear(launched.fixed + launched.row, launched.layer + launched.row_layer, 0.0, 0.0)}


def _named(at: Callable[[int, int, str], float], name: str) -> Callable[[int, int], float]:
    return lambda layers, rows: at(layers, rows, name)


def _update(run: Outline, layers: int, rows: int, mode: str, memory: bool) -> Operators:
    """The operators of one update of a twin, with the run's vocabulary, without the optimizer's."""
    twin = run.twin(layers, mode, memory)
    prepared = run.prepared(twin, rows)
    objective = twin.family.phases()[-1].objective
    with Operators() as found:
        vocabulary.backward(twin.network, objective, prepared, 1.0, run.bfloat16)
    _add_head(run, found, len(prepared.target), twin.network.logit_width)
    return found


def _add_head(run: Outline, found: Operators, targets: int, counted: int) -> None:
    """Add what the run's vocabulary takes beyond that of its twin, whose loss is computed in few parts."""
    shape = run.shape
    width = shape.vocab_size * (2 if shape.edits else 1) - counted
    products, size = 2 if run.recipe.lora else 3, run.compute.itemsize  # forward, input, and weights if they learn
    found.flops += 2.0 * products * targets * width * shape.dim
    found.product_bytes += products * size * width * (targets + shape.dim)
    found.vector_bytes += _LOGIT_PASSES * 4.0 * targets * width + (4 + size) * width * shape.dim


class Operators(TorchDispatchMode):
    """Context manager that counts operators: FLOP and bytes of matrix products and attention, bytes of all others.

    Operators that only look at memory (views) count nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.attention = self.product_bytes = self.vector_bytes = 0.0
        self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        found = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(found)
        packet = func._overloadpacket
        if func.is_view or not written or packet in _FREE:
            return found
        if packet in _LOOKUPS:
            read = written
        size = float(sum(t.nbytes for t in (*read, *written)))
        flops, attention = _flops(func, args, kwargs or {}, found)
        self.launches += 1
        if flops or attention:
            self.flops += flops
            self.attention += attention
            self.product_bytes += size
        else:
            self.vector_bytes += size
        return found


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _flops(func: Any, args: Any, kwargs: dict[str, Any], found: Any) -> tuple[float, float]:
    """Operations of a matrix product, and of attention; 0 for any other operator."""
    packet = func._overloadpacket
    if packet is _ATEN._scaled_dot_product_flash_attention_for_cpu:
        return 0.0, _attention(args[0], args[1], len(args) > 4 and bool(args[4]), 2)
    if packet is _ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        return 0.0, _attention(args[1], args[2], len(args) > 7 and bool(args[7]), 5)
    formula = flop_registry.get(packet)
    return (0.0 if formula is None else float(formula(*args, **kwargs, out_val=found))), 0.0


def _attention(query: Tensor, keys: Tensor, causal: bool, products: int) -> float:
    """Operations of ``products`` products of queries [R, H, Q, Dh] with keys [R, Hk, K, Dh]; a causal one is half."""
    return products * 2.0 * math.prod(query.shape) * keys.shape[2] * (0.5 if causal else 1.0)
