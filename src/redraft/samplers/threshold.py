"""Threshold: write every position whose confidence passes a threshold, and always the best one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Threshold:
    """Confidence-aware parallel decoding (Fast-dLLM, Wu et al. 2025, arXiv:2505.22618).

    Writes all positions with p(x) > ``threshold``, and the ``least`` most certain ones in any case: easy texts take few
    passes, hard ones more. ``block`` as in ``Confidence``.
    """

    threshold: float = 0.9
    block: int = 0
    least: int = 1

    exact = False
    retracts = False
    width = 1
    tries = {"threshold": (0.5, 0.7, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_share("threshold", self.threshold)
        if self.least < 1:
            raise UserError(f"least = {self.least} must be at least 1.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        sure = out.conf > math.log(self.threshold)
        top = _open.best(out.conf, (ask.want >= 0).sum(1).clamp(max=self.least))
        return None, _open.write(ask, out, sure | top)
