"""Dream: write the most confident positions first, as many as the reverse process would reveal on average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.options import setting
from redraft.samplers.confidence import Confidence
from redraft.types import Canvas, Request, Spec


@dataclass(frozen=True)
class Dream(Confidence):
    """The decoding of Dream (Ye et al. 2025, arXiv:2508.15487). ``order`` is its ``alg``: confidence (maskgit_plus),
    margin (topk_margin) or entropy.

    ``Confidence`` distributes positions evenly over the steps. Here, of n masked positions floor(n (1 - s/t)) are
    written from time t to s, on an even grid from 1 to ``eps``, and the rest at the last step. Early steps may write
    nothing.
    """

    order: str = "entropy"
    eps: float = setting(1e-3, "Time at which the grid ends; its last step writes all.", least=0, below=1)

    def start(self, canvas: Canvas, spec: Spec) -> None:
        super().start(canvas, spec)
        if self.block:
            raise UserError("The sampler dream does not support blocks.", "Use the sampler confidence with a block.")

    def count(self, canvas: Canvas, request: Request) -> Tensor:
        """[R] number of positions to write at this step."""
        free, step = (request.targets >= 0).sum(1), canvas.step[request.rows].double()
        stride = (1 - self.eps) / self.steps
        share = stride / (1 - step * stride)  # 1 - s/t
        return torch.where(step + 1 >= self.steps, free, (free * share).floor().long())
