"""Prophet: once predictions are confident enough, write all remaining positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_SCALE
from redraft.options import setting
from redraft.samplers.confidence import Confidence
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec


@dataclass(frozen=True)
class Prophet(Confidence):
    """Early commit (Li et al. 2025, arXiv:2508.19982) with the options of ``Confidence``.

    At each step the gap log p(1st) - log p(2nd), averaged over the free positions (of the block), is compared with a
    threshold that decreases over the steps: ``early`` in the first third, ``middle`` in the second, ``late`` in the
    last. If the gap reaches it, all free positions (of the block) are written at once. The paper averages over the
    positions of a short answer at a known place; here all positions count.
    """

    early: float = setting(
        7.5, "Gap at which all free positions are written, in the first third.", least=0, most=MAX_SCALE
    )
    middle: float = setting(5.0, "The gap in the second third of the steps.", least=0, most=MAX_SCALE)
    late: float = setting(2.5, "The gap in the last third of the steps.", least=0, most=MAX_SCALE)

    def start(self, canvas: Canvas, spec: Spec) -> None:
        super().start(canvas, spec)

    def chosen(self, canvas: Canvas, request: Request, out: Output) -> Tensor:
        """[R, W] bool: positions to write at this step."""
        first, second = out.log_p.topk(2, -1).values.unbind(-1)
        # The gap is infinite where only one token is allowed.
        gap = common.rectangle((first - second).clamp(max=1e3), request, 0.0).double()
        free = request.targets >= 0
        mean = gap.sum(1) / free.sum(1).clamp(min=1)
        progress = (canvas.step[request.rows] + 1) / self.steps
        threshold = torch.where(progress < 1 / 3, self.early, torch.where(progress < 2 / 3, self.middle, self.late))
        return super().chosen(canvas, request, out) | (free & (mean >= threshold)[:, None])
