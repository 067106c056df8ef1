"""Mask-predict: write everything at once, then take back and rewrite what is least certain, less at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.samplers import _open
from redraft.types import DRAFT, FREE, SEALED, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """What the rows looked like when they were last predicted."""

    conf: Tensor  # [B, L] log-probability of each position's token when it was predicted
    total: Tensor  # [B] positions to write


@dataclass(frozen=True)
class MaskPredict:
    """Ghazvininejad et al. 2019 (arXiv:1904.09324): at step s of T all masked positions are predicted, and the
    n (T - s) / T least certain of all n, old or new, are masked again.

    Where ``Confidence`` never takes back what it wrote, this one repairs words that don't go together.
    """

    steps: int = 10

    exact = False
    retracts = True
    width = 1
    tries = {"steps": (1, 2, 4, 6, 10)}

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_steps(self.steps, canvas, spec)
        return State(torch.zeros(canvas.ids.shape), (canvas.status == FREE).sum(1))

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, canvas.status == FREE)

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None
        rows, real = ask.rows, ask.want >= 0
        fresh = torch.zeros(len(rows), canvas.ids.shape[1], dtype=torch.bool)
        token, conf = canvas.ids[rows], state.conf[rows]
        at = real.nonzero(as_tuple=True)[0], ask.want[real]
        fresh[at], token[at], conf[at] = True, out.token[real], out.conf[real]
        open_ = canvas.open[rows]
        left = (self.steps - 1 - canvas.step[rows]).clamp(min=0)  # beyond the last where a constraint dropped some
        again = (state.total[rows] * left).div(self.steps, rounding_mode="floor")
        doubtful = _open.best((-conf).masked_fill(~open_, -torch.inf), again)
        status = torch.where((again == 0)[:, None], SEALED, DRAFT).expand_as(token)
        changed = (fresh & ~doubtful) | (open_ & (again == 0)[:, None])
        back = open_ & ~fresh & doubtful
        token = torch.where(back, spec.mask_id, token)
        status = torch.where(back, FREE, status)
        row, pos = (changed | back).nonzero(as_tuple=True)
        memory = state.conf.clone()
        memory[rows] = conf
        step = Step(rows[row], pos, token[row, pos], status[row, pos], conf[row, pos])
        return State(memory, state.total), step
