"""Bytes that are alive during an update and during a forward pass, counted on twins (``planning.twin``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import torch

from redraft.evaluation.memory import LiveBytes
from redraft.objectives.shared import vocabulary
from redraft.planning.twin import Case, Linear, Outline, counted

_ROWS, _SEEDS = 8, 4  # of batches over which the number of target positions is averaged


@dataclass(frozen=True)
class Activations:
    """What of a batch is alive during an update, in bytes by blocks and rows."""

    kept: Linear  # after the forward pass
    backward: Linear  # more than that, in the backward pass of one block
    forward: Linear  # in a forward pass without gradients
    targets: float  # target positions for each of a twin's rows, in the mean

    @classmethod
    def of(cls, run: Outline, mode: str) -> Activations:
        """Those of a run with this activation checkpointing. Equal runs are counted once."""
        return _activations(Case(run.key, mode, run))

    @classmethod
    def counted(cls, run: Outline, mode: str, memory: bool) -> Activations:
        """Those of a run, counted now. ``memory``: on twins with real tensors."""
        kept: dict[tuple[int, int], int] = {}

        def kept_at(layers: int, rows: int) -> int:
            kept[layers, rows] = _kept(run, layers, rows, mode, memory)
            return kept[layers, rows]

        after = Linear.through(kept_at)
        backward = _by_row(lambda rows: _backward(run, rows, mode, kept[1, rows], memory))
        return cls(after, backward, _by_row(lambda rows: _forward(run, rows, memory)), _targets(run, memory))


@lru_cache(maxsize=256)
def _activations(case: Case) -> Activations:
    return counted(lambda memory: Activations.counted(case.run, case.mode, memory))


def forward_bytes(run: Outline) -> Linear:
    """Bytes at the peak of a forward pass without gradients, by rows; logits are not counted."""
    return counted(lambda memory: _by_row(lambda rows: _forward(run, rows, memory)))


def _by_row(at: Callable[[int], int]) -> Linear:
    """The function of rows with the values at one and two rows, and no negative coefficient."""
    one, two = at(1), at(2)
    return Linear(max(2 * one - two, 0), 0.0, max(two - one, 0), 0.0)


def _targets(run: Outline, memory: bool) -> float:
    """Target positions of a row, in the mean over rows with different noise."""
    twin = run.twin(1, "none", memory)
    return sum(len(run.prepared(twin, _ROWS, seed).target) for seed in range(_SEEDS)) / (_ROWS * _SEEDS)


def _kept(run: Outline, layers: int, rows: int, mode: str, memory: bool) -> int:
    """Bytes alive after the forward pass of a twin."""
    twin = run.twin(layers, mode, memory)
    prepared = run.prepared(twin, rows)
    with LiveBytes(twin.network) as live, run.autocast():
        states = twin.network.states(prepared.request)
        found = live.now
        del states
    return found


def _backward(run: Outline, rows: int, mode: str, kept: int, memory: bool) -> int:
    """Bytes that the backward pass of a twin with one block needs besides what the forward pass kept.

    Gradients are freed when they are complete: they are planned by themselves.
    """
    twin = run.twin(1, mode, memory)
    prepared = run.prepared(twin, rows)
    objective = twin.family.phases()[-1].objective
    with _gradients_freed(twin.network), LiveBytes(twin.network) as live:
        vocabulary.backward(twin.network, objective, prepared, 1.0, run.bfloat16)
    return max(live.peak - kept, 0)


def _forward(run: Outline, rows: int, memory: bool) -> int:
    """The peak of a forward pass of a twin with one block, without gradients."""
    twin = run.twin(1, "none", memory)
    prepared = run.prepared(twin, rows)
    twin.network.eval()
    with torch.no_grad(), LiveBytes(twin.network) as live, run.autocast():
        twin.network.states(prepared.request)
    return live.peak


@contextmanager
def _gradients_freed(network: torch.nn.Module) -> Iterator[None]:
    """Context in which a gradient is freed as soon as it is complete, so that what else is alive can be counted."""
    handles = [p.register_post_accumulate_grad_hook(_free) for p in network.parameters() if p.requires_grad]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _free(parameter: torch.Tensor) -> None:
    parameter.grad = None
