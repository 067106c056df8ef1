"""DPM-Solver++: second-order steps along the deterministic path, at one pass each."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.errors import UserError
from redraft.noise import gaussian
from redraft.samplers import _continuous
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class DpmSolver:
    """DPM-Solver++(2M) of Lu et al. 2022 (arXiv:2211.01095, algorithm 2). With l = g / 2 half the log-SNR,
    h = l_s - l_t, and x the predicted clean vectors,

        z_s = sigma_s / sigma_t z_t - alpha_s (e^-h - 1) D,    D = x + (x - x_before) / (2 r),    r = h_before / h

    The first step and the last have nothing, or nothing sound, to extrapolate from: there D = x, which is DDIM. With
    ``order`` 1 it is DDIM throughout. ``steps`` passes; latent models then decode their vectors, ``slice`` tokens of a
    row a pass.
    """

    steps: int = 16
    order: int = 2
    slice: int = 256

    exact = False
    retracts = True
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> _continuous.State:
        if self.order not in (1, 2):
            raise UserError(f"order = {self.order} must be 1 or 2.")
        _continuous.check_slice(self.slice)
        return _continuous.start(canvas, spec, self.steps)

    def plan(self, canvas: Canvas, state: _continuous.State, spec: Spec) -> list[Forward]:
        return _continuous.plan(canvas, state, spec, self.steps, self.slice)

    def apply(
        self, canvas: Canvas, state: _continuous.State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[_continuous.State, Step]:
        for ask, out in zip(asks, outs, strict=True):
            assert ask.rows is not None and ask.vectors is not None
            if ask.vectors.kind != "predict":
                continue
            turn = canvas.step[ask.rows]
            before, now, then = (
                _continuous.log_snr(spec, at.clamp(min=0), self.steps) for at in (turn - 1, turn, turn + 1)
            )
            z, clean = _continuous.predicted(ask, out, spec, now)
            h, h_before = (then - now) / 2, (now - before) / 2
            inner = (turn > 0) & (turn + 1 < self.steps) & (h > 1e-6) & (h_before > 1e-6)
            more = torch.where(inner & (self.order == 2), h / (2 * h_before.clamp(min=1e-6)), 0.0)
            old = state.clean[ask.rows].gather(1, ask.want.clamp(min=0)[..., None].expand_as(z))
            further = clean + more.to(z)[:, None, None] * (clean - old)
            alpha, sigma_s = (part.to(z)[:, None] for part in gaussian.coefficients(then))
            _, sigma_t = (part.to(z)[:, None] for part in gaussian.coefficients(now))
            new = sigma_s / sigma_t * z - alpha * torch.expm1(-h).to(z)[:, None, None] * further
            state = _continuous.moved(state, ask, new, clean)
        return state, _continuous.written(canvas, spec, asks, outs, self.steps)
