"""Joint threshold: one threshold for writing a position, another for replacing a token that no longer fits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import DRAFT, FREE, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class JointThresholdState:
    """Data about the drafts of each row."""

    conf: Tensor  # [B, L] log-probability of each token when it was last written
    rounds: Tensor  # [B] passes over the active block since it has had no free position


@dataclass(frozen=True)
class JointThreshold(Sampler):
    """Token editing (LLaDA2.1, Bie et al. 2026, arXiv:2602.08676).

    Each pass predicts the free *and* the written positions of the block. Free positions with p(x) > ``threshold`` are
    written, and always the ``least`` most confident ones. If the likeliest token at a written position is another one,
    with p > ``edit``, it replaces the token. A block is final when it has no free position and a pass changes nothing,
    or after ``rounds`` passes without a free position. ``block`` as in ``Confidence``.

    LLaDA2.1 has two settings: speedy, with threshold 0.5 and edit near 0; quality, with 0.7 and 0.5. The network must
    also be trained to predict unmasked positions; predictions of a network trained on masks alone say little there.
    """

    threshold: float = setting(0.7, "Confidence above which a position is written.", above=0, most=1)
    edit: float = setting(0.5, "Confidence above which another token replaces a written one.", least=0, most=1)
    rounds: int = setting(16, "Passes over a block that has no free position left.", least=1, most=1000, unit="passes")
    block: int = block_option()
    least: int = setting(
        1, "Free positions that are written in any case.", least=1, most=MAX_POSITIONS, unit="positions"
    )

    retracts = True

    def start(self, canvas: Canvas, spec: Spec) -> JointThresholdState:
        common.check_diffusion(spec)
        return JointThresholdState(torch.zeros(canvas.ids.shape), torch.zeros_like(canvas.step))

    def plan(self, canvas: Canvas, state: JointThresholdState, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.in_block(canvas, canvas.open, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: JointThresholdState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[JointThresholdState, Step]:
        request, out = requests[0], outputs[0]
        rows, real, at = request.rows, request.targets >= 0, request.targets.clamp(min=0)
        free = real & (canvas.status[rows].gather(1, at) == FREE)
        token, conf = canvas.ids[rows].gather(1, at), state.conf[rows].gather(1, at)

        fresh = out.conf.masked_fill(~free, -torch.inf)
        fill = (fresh > math.log(self.threshold)) | common.best(fresh, free.sum(1).clamp(max=self.least))
        top, likeliest = out.log_p.max(-1)
        top, other = common.rectangles(request, (top, -torch.inf), (likeliest, -1))
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
        all_conf, all_rounds = state.conf.clone(), state.rounds.clone()
        all_conf[rows[row], pos] = conf[row, column]
        all_rounds[rows] = torch.where(done, 0, rounds)
        status = torch.where(done, SEALED, DRAFT)[row]
        step = Step(rows[row], pos, token[row, column], status, conf[row, column])
        return JointThresholdState(all_conf, all_rounds), step
