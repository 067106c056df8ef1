"""Mask-predict: write all positions, then mask and predict the least confident ones again, fewer at each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import DRAFT, FREE, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class MaskPredictState:
    """Confidence of the tokens of each row."""

    conf: Tensor  # [B, L] log-probability of each token when it was predicted
    total: Tensor  # [B] number of positions to generate


@dataclass(frozen=True)
class MaskPredict(Sampler):
    """Ghazvininejad et al. 2019 (arXiv:1904.09324): at step s of T all masked positions are predicted, and the
    n (T - s) / T least confident of all n positions, old or new, are masked again.

    Unlike ``Confidence``, it can replace tokens that do not fit together.
    """

    steps: int = setting(10, "Number of denoising steps.", least=1, most=MAX_STEPS)

    retracts = True
    tries = {"steps": (1, 2, 4, 6, 10)}

    def start(self, canvas: Canvas, spec: Spec) -> MaskPredictState:
        common.check_diffusion(spec)
        common.check_steps(self.steps, canvas, spec)
        return MaskPredictState(torch.zeros(canvas.ids.shape), (canvas.status == FREE).sum(1))

    def plan(self, canvas: Canvas, state: MaskPredictState, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, canvas.status == FREE)

    def apply(
        self, canvas: Canvas, state: MaskPredictState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[MaskPredictState, Step]:
        request, out = requests[0], outputs[0]
        rows, real = request.rows, request.targets >= 0
        fresh = torch.zeros(len(rows), canvas.ids.shape[1], dtype=torch.bool)
        token, conf = canvas.ids[rows], state.conf[rows]
        at = real.nonzero(as_tuple=True)[0], request.targets[real]
        fresh[at], token[at], conf[at] = True, out.token[real], out.conf[real]
        open_ = canvas.open[rows]
        # There are more steps than ``steps`` if a constraint dropped changes.
        remaining = (self.steps - 1 - canvas.step[rows]).clamp(min=0)
        count = (state.total[rows] * remaining).div(self.steps, rounding_mode="floor")
        doubtful = common.best((-conf).masked_fill(~open_, -torch.inf), count)
        status = torch.where((count == 0)[:, None], SEALED, DRAFT).expand_as(token)
        changed = (fresh & ~doubtful) | (open_ & (count == 0)[:, None])
        remasked = open_ & ~fresh & doubtful
        token = torch.where(remasked, spec.tokens.mask_id, token)
        status = torch.where(remasked, FREE, status)
        row, pos = (changed | remasked).nonzero(as_tuple=True)
        all_conf = state.conf.clone()
        all_conf[rows] = conf
        step = Step(rows[row], pos, token[row, pos], status[row, pos], conf[row, pos])
        return MaskPredictState(all_conf, state.total), step
