"""Joint threshold: one bar for writing a position, another for rewriting what no longer fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """What is known of each row's draft."""

    conf: Tensor  # [B, L] log-probability of each token when it was last written
    rounds: Tensor  # [B] passes over the current block since it has no free position


@dataclass(frozen=True)
class JointThreshold:
    """Token editing (LLaDA2.1, Bie et al. 2026, arXiv:2602.08676).

    Each pass predicts the free *and* the written positions of the block. Free ones with p(x) > ``threshold`` are
    written, and the most certain one in any case. Written ones whose likeliest token is another, with p > ``edit``, are
    replaced by it. A block is final when it has no free position and a pass changes nothing, or after ``rounds`` passes
    without a free position. ``block`` as in ``Confidence``.

    LLaDA2.1 names two settings: speedy, threshold 0.5 and edit near 0; quality, 0.7 and 0.5. It needs a network that
    was also trained to predict positions that it can see; one that only ever predicted masks tells little about them.
    """

    threshold: float = 0.7
    edit: float = 0.5
    rounds: int = 16
    block: int = 0

    exact = False
    retracts = True
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_share("threshold", self.threshold)
        if not 0 <= self.edit <= 1:
            raise UserError(f"edit = {self.edit} must lie in [0, 1].")
        if self.rounds < 1:
            raise UserError(f"rounds = {self.rounds} must be at least 1.")
        return State(torch.zeros(canvas.ids.shape), torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.in_block(canvas, canvas.open, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        rows, real, at = ask.rows, ask.want >= 0, ask.want.clamp(min=0)
        free = real & (canvas.status[rows].gather(1, at) == FREE)
        token, conf = canvas.ids[rows].gather(1, at), state.conf[rows].gather(1, at)

        fresh = out.conf.masked_fill(~free, -torch.inf)
        fill = (fresh > math.log(self.threshold)) | _open.best(fresh, free.any(1).long())
        top, likeliest = out.log_p.max(-1)
        top = _open.rectangle(top, ask, -torch.inf)
        other = _open.rectangle(likeliest, ask, -1)
        edit = real & ~free & (other != token)
        if self.edit > 0:
            edit &= top > math.log(self.edit)

        token = torch.where(edit, other, torch.where(fill, out.token, token))
        conf = torch.where(edit, top, torch.where(fill, out.conf, conf))
        full = ~free.any(1)
        rounds = state.rounds[rows] + full.long()
        done = full & (~edit.any(1) | (rounds >= self.rounds))
        row, column = (fill | edit | (real & done[:, None])).nonzero(as_tuple=True)
        pos = at[row, column]
        memory, count = state.conf.clone(), state.rounds.clone()
        memory[rows[row], pos] = conf[row, column]
        count[rows] = torch.where(done, 0, rounds)
        status = torch.where(done, SEALED, DRAFT)[row]
        return State(memory, count), Step(rows[row], pos, token[row, column], status, conf[row, column])
