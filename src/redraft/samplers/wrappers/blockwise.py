"""Any diffusion sampler, applied block by block, for models that generate in blocks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.runtime import upload
from redraft.samplers.base import SamplerWrapper
from redraft.types import PAD, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class BlockwiseState:
    """The active block of each row, and the state of the inner sampler within it."""

    block: Tensor  # [B] attention group of the active block; -1: none yet
    first_step: Tensor  # [B] step of the row at which the block began
    inner: Any


@dataclass(frozen=True)
class Blockwise(SamplerWrapper):
    """Runs the inner sampler on a view of the canvas that ends with each row's leftmost unfinished block.

    The inner sampler starts again in every block, and its steps are counted per block. Positions after the active block
    do not run, so a long canvas costs nothing, and after an end-of-text token no later block is generated.
    """

    def start(self, canvas: Canvas, spec: Spec) -> BlockwiseState:
        if self.inner.block_size:
            raise UserError(
                f"This model generates in blocks of {spec.network.attention.block}; the sampler must not use its own.",
                "Set the sampler's block to 0.",
            )
        initial = BlockwiseState(torch.full_like(canvas.step, -1), torch.zeros_like(canvas.step), None)
        return self._current(canvas, initial, spec)[1]

    def plan(self, canvas: Canvas, state: BlockwiseState, spec: Spec) -> list[Request]:
        view, state = self._current(canvas, state, spec)
        return self.inner.plan(view, state.inner, _without_eos(spec))

    def apply(
        self, canvas: Canvas, state: BlockwiseState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[BlockwiseState, Step]:
        view, state = self._current(canvas, state, spec)
        inner, step = self.inner.apply(view, state.inner, _without_eos(spec), requests, outputs)
        return replace(state, inner=inner), step

    def _current(self, canvas: Canvas, state: BlockwiseState, spec: Spec) -> tuple[Canvas, BlockwiseState]:
        """The view for the inner sampler, and the state, started again in rows that are in a new block.

        It depends only on canvas and state, so ``plan`` and ``apply`` of one step get the same result.
        """
        group, block = _blocks(canvas, spec)
        is_new = block != state.block
        first_step = torch.where(is_new, canvas.step, state.first_step)
        view = _view(canvas, group, block, first_step)
        inner = state.inner
        if bool(is_new.any()):
            fresh = self.inner.start(view, _without_eos(spec))
            inner = fresh if bool((state.block < 0).all()) else _merged(fresh, inner, is_new)
        return view, BlockwiseState(block, first_step, inner)


def _without_eos(spec: Spec) -> Spec:
    """A spec in which no token ends a sequence, because that also depends on blocks that the view hides."""
    return spec.with_tokens(eos_id=-1)


def _blocks(canvas: Canvas, spec: Spec) -> tuple[Tensor, Tensor]:
    """[B, L] attention group of every position, and [B] that of each row's first open one (or of the last position)."""
    columns = torch.arange(canvas.ids.shape[1]).expand_as(canvas.ids)
    group = spec.network.attention.group(columns, canvas.prompt if spec.network.prompt_encoder else None)
    return group, torch.where(canvas.open, group, group[:, -1:]).amin(1)


def _view(canvas: Canvas, group: Tensor, block: Tensor, first_step: Tensor) -> Canvas:
    status = canvas.status.masked_fill(group > block[:, None], PAD)
    return replace(canvas, status=status, step=canvas.step - first_step)


def _merged(fresh: Any, old: Any, is_new: Tensor) -> Any:
    """Rows of ``fresh`` where ``is_new`` [B], else of ``old``: tensors, dataclasses of them, or None.

    A sampler that keeps numbers on the device has None for zeros until the first answer.
    """
    if isinstance(fresh, Tensor):
        is_new = upload(is_new, old.device).view(-1, *[1] * (fresh.ndim - 1))
        return torch.where(is_new, upload(fresh, old.device), old)
    if dataclasses.is_dataclass(fresh) and not isinstance(fresh, type):
        names = [f.name for f in dataclasses.fields(fresh)]
        return replace(fresh, **{n: _merged(getattr(fresh, n), getattr(old, n), is_new) for n in names})
    if fresh is None and isinstance(old, Tensor):
        return old.masked_fill(upload(is_new, old.device).view(-1, *[1] * (old.ndim - 1)), 0)
    if fresh is not None:
        raise TypeError(f"the state of a sampler contains a {type(fresh).__name__}, not a tensor with a row per row")
    return None
