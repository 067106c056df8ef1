"""Prophet: as soon as the model has made up its mind, write all that is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.samplers.confidence import Confidence
from redraft.types import Canvas, Forward, Output, Spec


@dataclass(frozen=True)
class Prophet(Confidence):
    """Early commit (Li et al. 2025, arXiv:2508.19982) on top of ``Confidence``, whose fields it shares.

    Before each step the gap log p(1st) - log p(2nd), averaged over the free positions (of the block), is compared with
    a bar that falls as the steps go by: ``early`` in the first third, ``middle`` in the second, ``late`` in the last.
    Once it is reached, everything free (in the block) is written at once. The paper averages over the positions of a
    short answer at a known place; here nothing is known of the answer, and all count.
    """

    early: float = 7.5
    middle: float = 5.0
    late: float = 2.5

    def start(self, canvas: Canvas, spec: Spec) -> None:
        super().start(canvas, spec)
        for name in ("early", "middle", "late"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} = {getattr(self, name)} must be at least 0.")

    def chosen(self, canvas: Canvas, ask: Forward, out: Output) -> Tensor:
        assert ask.rows is not None
        first, second = out.log_p.topk(2, -1).values.unbind(-1)
        gap = _open.rectangle((first - second).clamp(max=1e3).double(), ask, 0.0)  # infinite where one token is allowed
        free = ask.want >= 0
        mean = gap.sum(1) / free.sum(1).clamp(min=1)
        progress = (canvas.step[ask.rows] + 1) / self.steps
        bar = torch.where(progress < 1 / 3, self.early, torch.where(progress < 2 / 3, self.middle, self.late))
        return super().chosen(canvas, ask, out) | (free & (mean >= bar)[:, None])
