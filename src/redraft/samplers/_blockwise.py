"""Any diffusion sampler, block after block: what a model that writes in blocks needs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.types import PAD, Canvas, Forward, Output, Sampler, Spec, Step


@dataclass(frozen=True)
class State:
    """Where each row stands, and the state of the sampler within its block."""

    block: Tensor  # [B] stage of the block at work; -1: none yet
    begun: Tensor  # [B] turns the row had taken when it began
    inner: Any


@dataclass(frozen=True)
class Blockwise:
    """Shows a sampler the canvas up to the end of each row's leftmost unfinished block, as if there were no more.

    Every block is a task of its own: the sampler starts anew, and its steps are steps a block. So the canvas may be as
    long as it likes: nothing beyond the block at work is run, and once an end-of-text is written nothing ever is.
    """

    inner: Sampler

    @property
    def exact(self) -> bool:
        return self.inner.exact

    @property
    def retracts(self) -> bool:
        return self.inner.retracts

    @property
    def width(self) -> int:
        return self.inner.width

    def start(self, canvas: Canvas, spec: Spec) -> State:
        if getattr(self.inner, "block", 0):
            raise UserError(
                f"this model writes in blocks of {spec.attend.block} positions: the sampler can't have its own.",
                "Leave its block at 0.",
            )
        nowhere = State(torch.full_like(canvas.step, -1), torch.zeros_like(canvas.step), None)
        return self._now(canvas, nowhere, spec)[1]

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        view, state = self._now(canvas, state, spec)
        return self.inner.plan(view, state.inner, _endless(spec))

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        view, state = self._now(canvas, state, spec)
        inner, step = self.inner.apply(view, state.inner, _endless(spec), asks, outs)
        return replace(state, inner=inner), step

    def _now(self, canvas: Canvas, state: State, spec: Spec) -> tuple[Canvas, State]:
        """What the sampler sees, and its state, begun anew in rows that have moved on to another block.

        A function of canvas and state alone: ``plan`` and ``apply`` of one turn find the same.
        """
        stage, block = _current(canvas, spec)
        moved = block != state.block
        begun = torch.where(moved, canvas.step, state.begun)
        view = _view(canvas, spec, stage, block, begun)
        inner = state.inner
        if bool(moved.any()):
            fresh = self.inner.start(view, _endless(spec))
            inner = fresh if bool((state.block < 0).all()) else _merged(fresh, inner, moved)
        return view, State(block, begun, inner)


def _endless(spec: Spec) -> Spec:
    """Within a block no end-of-text ends anything: later blocks, which the view hides, have a say in that."""
    return replace(spec, eos_id=-1)


def _current(canvas: Canvas, spec: Spec) -> tuple[Tensor, Tensor]:
    """[B, L] stage of every position, and [B] that of each row's first open one (of the last, where none is open)."""
    columns = torch.arange(canvas.ids.shape[1]).expand_as(canvas.ids)
    stage = spec.attend.stage(columns, canvas.prompt if spec.isolate_prompt else None)
    return stage, torch.where(canvas.open, stage, stage[:, -1:]).amin(1)


def _view(canvas: Canvas, spec: Spec, stage: Tensor, block: Tensor, begun: Tensor) -> Canvas:
    status = canvas.status.masked_fill(stage > block[:, None], PAD)
    return replace(canvas, status=status, step=canvas.step - begun)


def _merged(fresh: Any, old: Any, moved: Tensor) -> Any:
    """Rows of ``fresh`` where they have ``moved`` [B], else of ``old``: tensors, dataclasses of them, or None."""
    if isinstance(fresh, Tensor):
        moved = moved.view(-1, *[1] * (fresh.ndim - 1)).to(old.device)
        return torch.where(moved, fresh.to(old.device), old)
    if dataclasses.is_dataclass(fresh) and not isinstance(fresh, type):
        names = [f.name for f in dataclasses.fields(fresh)]
        return replace(fresh, **{n: _merged(getattr(fresh, n), getattr(old, n), moved) for n in names})
    if fresh is not None:
        raise TypeError(f"a sampler's state holds a {type(fresh).__name__}: tensors with a row each are wanted")
    return None
