"""DDIM: from noisy vectors to clean ones along the deterministic path, or with some fresh noise at every step."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.errors import UserError
from redraft.noise import gaussian
from redraft.samplers import _continuous
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Ddim:
    """Song et al. 2020 (arXiv:2010.02502): with the predicted clean x and noise n = (z_t - alpha_t x) / sigma_t,

        z_s = alpha_s x + sqrt(sigma_s^2 - d^2) n + d fresh noise,    d^2 = eta^2 v,

    v the variance of q(z_s | z_t, x). ``eta`` 0 is deterministic, 1 is ancestral sampling. ``steps`` passes; latent
    models then decode their vectors, ``slice`` tokens of a row a pass.
    """

    steps: int = 16
    eta: float = 0.0
    slice: int = 256

    exact = False
    retracts = True
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> _continuous.State:
        if not 0 <= self.eta <= 1:
            raise UserError(f"eta = {self.eta} must lie in [0, 1].")
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
            now, then = (_continuous.log_snr(spec, at, self.steps) for at in (turn, turn + 1))
            z, clean = _continuous.predicted(ask, out, spec, now)
            alpha_t, sigma_t = (part.to(z)[:, None] for part in gaussian.coefficients(now))
            alpha_s, sigma_s = (part.to(z)[:, None] for part in gaussian.coefficients(then))
            _, variance = gaussian.Gaussian().posterior(z, clean, then.to(z)[:, None], now.to(z)[:, None])
            fresh = self.eta**2 * variance.clamp(min=0)
            new = alpha_s * clean + (sigma_s.square() - fresh).clamp(min=0).sqrt() * (z - alpha_t * clean) / sigma_t
            if self.eta:
                new = new + fresh.sqrt() * _continuous.noise(canvas, ask, z.shape[2])
            state = _continuous.moved(state, ask, new, clean)
        return state, _continuous.written(canvas, spec, asks, outs, self.steps)
