"""Thought by thought: the leftmost unfinished thought, where it is surest, in a few passes; then the next one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.samplers import _open
from redraft.types import FREE, SEALED, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Thought:
    """DoT-MP (Ye et al. 2024, arXiv:2402.07754): several passes a thought, one thought after the other.

    Nobody says how long a thought is. It ends at the first border (``Spec.borders``) that stands or that is predicted
    now, so that its end may move as it takes shape. Of a thought of n tokens ceil(n / ``steps``) are written at each
    pass, the surest first. A model without borders has one thought.
    """

    steps: int = 4

    exact = False
    retracts = False
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_steps(self.steps, canvas, spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, 0, spec))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        first, last = self._extent(canvas, ask, out, spec)
        here = (ask.want >= 0) & (ask.want <= last[:, None])
        count = -(-(last + 1 - first) // self.steps)
        return None, _open.write(ask, out, _open.best(out.conf.masked_fill(~here, -torch.inf), count))

    def _extent(self, canvas: Canvas, ask: Forward, out: Output, spec: Spec) -> tuple[Tensor, Tensor]:
        """[R] each: the first and the last position of the thought at work, what of it is written included."""
        assert ask.rows is not None
        ids, status = canvas.ids[ask.rows], canvas.status[ask.rows]
        columns, borders = torch.arange(ids.shape[1]), torch.tensor(spec.borders)
        frontier = ask.want[:, 0]  # of what is free the leftmost
        standing = (status == SEALED) & torch.isin(ids, borders)
        begun = torch.where(standing & (columns < frontier[:, None]), columns + 1, 0).amax(1)
        end = torch.where((status == FREE) | (status == SEALED), columns, 0).amax(1, keepdim=True)
        coming = torch.where((ask.want >= 0) & torch.isin(out.token, borders), ask.want, end).amin(1)
        ahead = torch.where(standing & (columns > frontier[:, None]), columns, end).amin(1)
        return torch.maximum(begun, canvas.prompt[ask.rows]), torch.minimum(coming, ahead)
