"""Factor: write as many positions as their certainty carries, the more certain the more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Factor:
    """Factor-based parallel decoding (Fast-dLLM, Wu et al. 2025, arXiv:2505.22618).

    With the confidences sorted, c_(1) >= c_(2) >= ..., the n first are written, n being the largest with

        (n + 1) (1 - c_(n)) < factor

    and one in any case. Where ``Threshold`` asks the same of a pair as of fifty positions, this asks more of fifty: the
    error of drawing n positions independently is bounded by n times the least certain one's doubt.
    ``block`` as in ``Confidence``.
    """

    factor: float = 1.0
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"factor": (0.5, 1.0, 2.0, 4.0)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        if not self.factor > 0:
            raise UserError(f"factor = {self.factor} must be above 0.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        doubt = -torch.expm1(out.conf.double().sort(dim=1, descending=True).values)  # 1 - c, and 1 where not wanted
        number = torch.arange(1, doubt.shape[1] + 1)
        carried = ((number + 1) * doubt < self.factor) & (number <= (ask.want >= 0).sum(1, keepdim=True))
        # the left side grows with n, so that what holds is a prefix
        return None, _open.write(ask, out, _open.best(out.conf, carried.sum(1).clamp(min=1)))
