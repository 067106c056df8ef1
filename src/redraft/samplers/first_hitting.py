"""First-hitting: one uniformly random free position a pass, an exact draw from the masked-diffusion model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.runtime import keyed_uniform
from redraft.samplers import _open
from redraft.types import FREE, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class FirstHitting:
    """Zheng et al. 2024 (arXiv:2409.02908): n passes for n tokens, and no error from discretised time.

    In continuous time tokens are revealed one at a time in a uniformly random order that does not depend on their
    values, so only the revealed position needs a prediction.
    """

    exact = True
    retracts = False
    width = 1
    positions = "noise"  # what decides where is written (see ``likelihood.under``)

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        free = canvas.status == FREE
        positions = torch.arange(free.shape[1]).expand(free.shape)
        score = keyed_uniform(canvas.seed, canvas.step + _open.ORDER_STREAM, positions)
        chosen = _open.best(score.masked_fill(~free, -torch.inf), torch.ones_like(canvas.step))
        return _open.ask_for(canvas, spec, chosen)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        return None, _open.write(asks[0], outs[0], asks[0].want >= 0)
