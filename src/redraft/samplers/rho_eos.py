"""rho-EOS: keep the share of free positions that predict the end of the text within limits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common, growing
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class RhoEos(Sampler):
    """Variable length without training, in both directions (arXiv:2601.22527).

    rho is the share of the free positions whose likeliest token is the end. After each pass, a row with rho below
    ``low`` gets more masks at its end, and one with rho above ``high`` loses free positions there:

        K = ``grow`` min(2^(s - 1), 8),   s = ceil(distance of rho to the limits / 0.1)

    Only trailing positions that predict the end are removed, and one of them stays, so that the text can end. A pass
    writes all positions of the block with p(x) > ``threshold``, and always the most confident one. The density is that
    of the paper; its released code measures the certainty of ``daedal`` instead. A model with a length head is refused.
    """

    initial: int = setting(64, "Masks that the answer begins with.", least=1, most=MAX_POSITIONS, unit="positions")
    grow: int = setting(8, "Least number of masks that are added or removed.", least=1, most=MAX_POSITIONS)
    low: float = setting(0.4, "Share of ends below which masks are added.", least=0, most=1)
    high: float = setting(0.6, "Share of ends above which masks are removed.", least=0, most=1)
    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    block: int = block_option()

    tries = {"threshold": (0.7, 0.9)}

    @property
    def initial_length(self) -> int:
        return self.initial

    def start(self, canvas: Canvas, spec: Spec) -> None:
        growing.check(canvas, spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, 0, spec))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        rows, real = request.rows, request.targets >= 0
        conf = growing.confident(canvas, spec, request, out, self.block)
        chosen = (conf > math.log(self.threshold)) | common.best(conf, torch.ones_like(rows))

        _, is_end = growing.ends(request, out, spec)
        amount = self.change((is_end & real).sum(1) / real.sum(1)) * canvas.gap[rows].any(1)
        more = torch.minimum(amount.clamp(min=0), growing.room(canvas)[rows])
        steps = [
            common.write(request, out, chosen),
            growing.append(canvas, spec, rows, more),
            growing.cut(canvas, request, is_end & ~chosen, (-amount).clamp(min=0)),
        ]
        return None, growing.combined(steps)

    def change(self, rho: Tensor) -> Tensor:
        """[R] masks to add, negative: to remove, for shares of ends ``rho`` [R]."""
        gap = torch.where(rho < self.low, self.low - rho, (rho - self.high).clamp(min=0))
        size = self.grow * (2.0 ** ((gap / 0.1 - 1e-6).ceil() - 1)).clamp(max=8)
        return torch.where(gap > 0, torch.where(rho < self.low, size, -size), 0.0).long()
