"""Threshold: write every position whose confidence exceeds a threshold, and always the most confident one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Threshold(Sampler):
    """Confidence-aware parallel decoding (Fast-dLLM, Wu et al. 2025, arXiv:2505.22618).

    Writes all positions with p(x) > ``threshold``, and always the ``least`` most confident ones. Easy sequences take
    few passes, hard ones more. ``block`` as in ``Confidence``.
    """

    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    block: int = block_option()
    least: int = setting(1, "Positions that a pass writes at least.", least=1, most=MAX_POSITIONS, unit="positions")

    tries = {"threshold": (0.5, 0.7, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        confident = out.conf > math.log(self.threshold)
        best = common.best(out.conf, (request.targets >= 0).sum(1).clamp(max=self.least))
        return None, common.write(request, out, confident | best)
