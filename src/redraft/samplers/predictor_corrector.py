"""Predictor-corrector: steps of the reverse of uniform noise, and between them doubtful tokens drawn again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.noise.uniform import alphabet
from redraft.samplers import _open, _uniform
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class PredictorCorrector:
    """After each predictor step (``Posterior``) but the last, ``corrections`` passes at the same noise level, each of
    which draws a ``share`` of the open tokens again (Campbell et al. 2022, arXiv:2205.14987, for correctors;
    arXiv:2605.22765 for this one). There are steps + (steps - 1) corrections passes.

    Drawing a token of x_t anew given all others, from alpha p + (1 - alpha) / n, leaves the distribution at t as it is
    (Gibbs), because a model trained on the bound of uniform noise predicts without looking at the token in its place. A
    model trained as a plain classifier does look, and would first have log(1 + n alpha / (1 - alpha)) taken off that
    token's logit.

    ``order`` says which tokens: ``random`` ones, which keeps to the model's distribution; or by ``margin``, those
    least likely by log-probability less that of the best other token, which sharpens it as low temperature does.
    """

    steps: int = 16
    corrections: int = 1
    share: float = 0.1
    order: Literal["margin", "random"] = "margin"

    exact = False
    retracts = True
    width = 1
    tries = {"steps": (4, 8, 16), "corrections": (1, 2)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _uniform.check(spec, self.steps)
        if self.corrections < 0:
            raise UserError(f"corrections = {self.corrections} must be at least 0.")
        if not 0 < self.share <= 1:
            raise UserError(f"share = {self.share} must lie in (0, 1].")
        if self.order not in ("margin", "random"):
            raise UserError(f"unknown order '{self.order}'.", suggest(self.order, ("margin", "random")))

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        turn, correcting = self._turn(canvas.step)
        return _uniform.ask_open(canvas, spec, self._time(turn + correcting))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None and spec.schedule is not None
        turn, correcting = self._turn(canvas.step[ask.rows])
        last = turn + 1 >= self.steps
        now = spec.schedule.alpha(self._time(turn))
        then = torch.where(last, 1.0, spec.schedule.alpha(self._time(turn + 1)))
        predicted = _uniform.resample(canvas, ask, out, spec, now, then)
        corrected = self._correct(canvas, ask, out, spec, then)
        tokens = torch.where(correcting[:, None], corrected, predicted)
        return None, _uniform.draft(ask, out, tokens, last)

    def _correct(self, canvas: Canvas, ask: Forward, out: Output, spec: Spec, alpha: Tensor) -> Tensor:
        assert ask.rows is not None
        own, real = _uniform.own_tokens(canvas, ask), ask.want >= 0
        if self.order == "random":
            score = _uniform.order(canvas, ask)
        else:
            score = self._doubt(ask, out, own, alpha, len(alphabet(spec)))
        chosen = _open.best(score.masked_fill(~real, -torch.inf), (self.share * real.sum(1)).ceil().long())
        falls, random = _uniform.random_tokens(canvas, ask, spec, 1 - alpha)
        return torch.where(chosen, torch.where(falls, random, out.token), own)

    def _doubt(self, ask: Forward, out: Output, own: Tensor, alpha: Tensor, n: int) -> Tensor:
        """[R, W] log-probability of the best other token less that of the one that stands."""
        p_own = _uniform.log_p_of(own, ask, out).exp()
        best = out.log_p.double().exp().topk(2, -1)
        first, second = (_open.rectangle(best.values[:, k], ask, 0.0) for k in (0, 1))
        top = _open.rectangle(best.indices[:, 0], ask, -1)
        noise = ((1 - alpha) / n)[:, None]
        rival = alpha[:, None] * torch.where(top == own, second, first) + noise
        return rival.log() - (alpha[:, None] * p_own + noise).log()

    def _turn(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """Which predictor step a row is at, and whether it is in one of the passes that follow it."""
        cycle = self.corrections + 1
        return step.div(cycle, rounding_mode="floor"), step % cycle > 0

    def _time(self, turn: Tensor) -> Tensor:
        return (1 - turn.double() / self.steps).clamp(min=0)
