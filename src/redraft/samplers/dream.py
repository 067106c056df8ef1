"""Dream: the surest positions first, as many as the reverse process would reveal on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers.confidence import Confidence
from redraft.types import Canvas, Forward, Spec


@dataclass(frozen=True)
class Dream(Confidence):
    """Dream's own decoding (Ye et al. 2025, arXiv:2508.15487), ``order`` being its ``alg``: confidence (maskgit_plus),
    margin (topk_margin) or entropy.

    Where ``Confidence`` shares positions out evenly, of n masked ones floor(n (1 - s/t)) are written as time goes
    from t to s on an even grid from 1 to ``eps``, and the rest at the last step. Early steps may write nothing.
    """

    order: str = "entropy"
    eps: float = 1e-3

    def start(self, canvas: Canvas, spec: Spec) -> None:
        super().start(canvas, spec)
        if self.block:
            raise UserError("Dream's schedule knows no blocks.", "Take the sampler confidence with a block.")
        if not 0 <= self.eps < 1:
            raise UserError(f"eps = {self.eps} must lie in [0, 1).")

    def count(self, canvas: Canvas, ask: Forward) -> Tensor:
        assert ask.rows is not None
        free, turn = (ask.want >= 0).sum(1), canvas.step[ask.rows].double()
        stride = (1 - self.eps) / self.steps
        share = stride / (1 - turn * stride)  # 1 - s/t
        return torch.where(turn + 1 >= self.steps, free, (free * share).floor().long())
