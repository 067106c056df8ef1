"""Posterior: every open token is drawn anew at every step, from the reverse of uniform noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.samplers import _uniform
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Posterior:
    """Ancestral sampling for uniform noise (D3PM, arXiv:2107.03006; UDLM, arXiv:2412.10193): from t to s, each token
    comes from q(x_s | x_t, p), with p the model's prediction. One pass a step, of all open positions.

    Tokens may change until the last step, so there may be more steps than tokens.
    """

    steps: int = 16

    exact = False  # tokens of one step are drawn independently of each other
    retracts = True
    width = 1
    tries = {"steps": (4, 8, 16, 32)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _uniform.check(spec, self.steps)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _uniform.ask_open(canvas, spec, self._time(canvas.step))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None and spec.schedule is not None
        turn = canvas.step[ask.rows]
        last = turn + 1 >= self.steps
        now = spec.schedule.alpha(self._time(turn))
        then = torch.where(last, 1.0, spec.schedule.alpha(self._time(turn + 1)))
        return None, _uniform.draft(ask, out, _uniform.resample(canvas, ask, out, spec, now, then), last)

    def _time(self, turn: Tensor) -> Tensor:
        return (1 - turn.double() / self.steps).clamp(min=0)
