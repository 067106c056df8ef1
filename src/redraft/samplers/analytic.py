"""Analytic: from t to s in one leap by the scores themselves, as SEDD samples; for masks and for uniform noise."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.uniform import alphabet
from redraft.runtime import inverse_cdf, keyed_uniform
from redraft.samplers import _open, _uniform
from redraft.types import Canvas, Forward, Output, Spec, Step

_FIRST = 1 - 1e-3  # time begins where training ended: at t = 1 a score of uniform noise says nothing


@dataclass(frozen=True)
class Analytic:
    """Tweedie tau-leaping of SEDD (Lou et al. 2024, arXiv:2310.16834, section 4.2): positions are drawn from

        p(x_s = y) ~ [exp(-ds Q) s]_y [exp(ds Q)]_{x_t, y},   ds = log(alpha_s / alpha_t),  Q the rates of the noise,

    the best that can be done position by position. The last step leaves no noise. By process:

    - Absorbing: a mask is written with probability (alpha_s - alpha_t) / (1 - alpha_t) e^g, at most 1, where g is what
      the scores' total is off (0 for models that predict: then this is ``Ancestral``).
    - Uniform: with f = softmax(logits) of a score model, alpha_t p + (1 - alpha_t) / n of one that predicts, and
      a = alpha_t / alpha_s, p(x_s = y) ~ max(f_y - (1 - a) / n, 0) ((1 - a) / n + a [y = x_t]). For models that predict
      this is ``Posterior``. Temperature and top-p act on the last step, where p(x_0) itself is drawn.
    """

    steps: int = 16

    exact = False
    retracts = True
    width = 1
    tries = {"steps": (4, 8, 16, 32)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_noise(spec)
        if self.steps < 1:
            raise UserError(f"steps = {self.steps} must be at least 1.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _uniform.ask_open(canvas, spec, self._time(canvas.step, spec))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        assert ask.rows is not None and spec.schedule is not None
        turn = canvas.step[ask.rows]
        last = turn + 1 >= self.steps
        now = spec.schedule.alpha(self._time(turn, spec))
        then = torch.where(last, 1.0, spec.schedule.alpha(self._time(turn + 1, spec)))
        if spec.process == "absorbing":
            return None, self._reveal(canvas, ask, out, spec, now, then)
        return None, _uniform.draft(ask, out, self._leap(canvas, ask, out, spec, now, then), last)

    def _reveal(self, canvas: Canvas, ask: Forward, out: Output, spec: Spec, now: Tensor, then: Tensor) -> Step:
        assert ask.rows is not None
        row = (ask.want >= 0).nonzero()[:, 0]
        log_z = None if out.log_z is None else out.log_z.cpu()
        chance = _open.rectangle(revealing(log_z, now[row], then[row], spec), ask, 0.0)
        stamp = canvas.step[ask.rows] + _open.ORDER_STREAM
        drawn = keyed_uniform(canvas.seed[ask.rows], stamp, ask.want.clamp(min=0))
        return _open.write(ask, out, (ask.want >= 0) & ((drawn < chance) | (then >= 1)[:, None]))

    def _leap(self, canvas: Canvas, ask: Forward, out: Output, spec: Spec, now: Tensor, then: Tensor) -> Tensor:
        assert ask.rows is not None
        row, column = (ask.want >= 0).nonzero(as_tuple=True)
        rows, own = ask.rows[row], _uniform.own_tokens(canvas, ask)[row, column]
        log_q = leap(out.log_p, own.to(out.log_p.device), now[row], then[row], spec)
        stamp = canvas.step[ask.rows] + _open.ORDER_STREAM
        uniform = keyed_uniform(canvas.seed[ask.rows], stamp, ask.want.clamp(min=0))[row, column]
        draw, end = canvas.draw, then[row] >= 1
        cold = end & (draw.temperature[rows] == 0)
        chosen = inverse_cdf(
            log_q,
            uniform.to(log_q.device),
            torch.where(end & ~cold, draw.temperature[rows], 1.0).to(log_q.device),
            torch.where(cold, 1, torch.where(end, draw.top_k[rows], 0)).to(log_q.device),
            torch.where(end, draw.top_p[rows], 1.0).to(log_q.device),
        )
        return torch.zeros_like(ask.want).index_put((row, column), chosen.cpu())

    def _time(self, turn: Tensor, spec: Spec) -> Tensor:
        first = _FIRST if spec.process == "uniform" else 1.0
        return first * (1 - turn.double() / self.steps).clamp(min=0)


def revealing(log_z: Tensor | None, alpha_t: Tensor, alpha_s: Tensor, spec: Spec) -> Tensor:
    """Probability that a mask is written between t and s [N]; ``log_z`` [N] as in ``Output``."""
    chance = (alpha_s - alpha_t) / (1 - alpha_t)
    if log_z is None:
        return chance
    return chance * (log_z.double() - math.log(spec.vocab_size - len({*spec.forbidden, spec.mask_id}))).exp()


def leap(log_p: Tensor, own: Tensor, alpha_t: Tensor, alpha_s: Tensor, spec: Spec) -> Tensor:
    """Log of p(x_s = y) under uniform noise, up to a constant: [N, V], ``own`` [N] ids x_t, alphas [N] -> [N, V]."""
    letters = alphabet(spec).to(log_p.device)
    n, f = len(letters), log_p.double().exp()
    now, kept = alpha_t.to(log_p.device)[:, None], (alpha_t / alpha_s).to(log_p.device)[:, None]
    if not spec.score:
        f = torch.zeros_like(f).index_copy_(1, letters, now * f[:, letters] + (1 - now) / n)
    before = (f - (1 - kept) / n).clamp(min=0)
    before = torch.where(before.sum(1, keepdim=True) > 0, before, f)  # scores too flat to tell anything
    noise = ((1 - kept) / n).expand_as(f)
    return (before * noise.scatter_add(1, own[:, None], kept)).log()
