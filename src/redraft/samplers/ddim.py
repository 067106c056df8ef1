"""DDIM: denoise vectors along the deterministic path, optionally with new noise at every step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from redraft.limits import MAX_POSITIONS, MAX_STEPS
from redraft.noise import gaussian
from redraft.options import setting
from redraft.samplers.shared import vector_diffusion
from redraft.types import Canvas, Output, Request, Spec


@dataclass(frozen=True)
class Ddim(vector_diffusion.VectorSampler):
    """Song et al. 2020 (arXiv:2010.02502): with the predicted clean x and noise n = (z_t - alpha_t x) / sigma_t,

        z_s = alpha_s x + sqrt(sigma_s^2 - d^2) n + d e,    d^2 = eta^2 v,    e ~ N(0, I)

    where v is the variance of q(z_s | z_t, x). ``eta`` 0 is deterministic, 1 is ancestral sampling. It takes ``steps``
    passes; latent models then decode their vectors, ``slice`` tokens of each row per pass.
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)
    eta: float = setting(0.0, "0 is deterministic, 1 is ancestral sampling.", least=0, most=1)
    slice: int = setting(256, "Tokens of each row that a pass decodes.", least=1, most=MAX_POSITIONS, unit="tokens")

    def start(self, canvas: Canvas, spec: Spec) -> vector_diffusion.VectorState:
        return super().start(canvas, spec)

    def advance(
        self, canvas: Canvas, state: vector_diffusion.VectorState, spec: Spec, request: Request, out: Output
    ) -> tuple[Tensor, Tensor]:
        """The vectors of DDIM after the step, and the predicted clean ones, [R, W, Z] each."""
        step = canvas.step[request.rows]
        snr_t, snr_s = (vector_diffusion.log_snr(spec, at, self.steps) for at in (step, step + 1))
        z, clean = vector_diffusion.predicted(request, out, spec, snr_t)
        alpha_t, sigma_t = (part.to(z)[:, None] for part in gaussian.coefficients(snr_t))
        alpha_s, sigma_s = (part.to(z)[:, None] for part in gaussian.coefficients(snr_s))
        _, variance = gaussian.Gaussian().posterior(z, clean, snr_s.to(z)[:, None], snr_t.to(z)[:, None])
        fresh = self.eta**2 * variance.clamp(min=0)
        new = alpha_s * clean + (sigma_s.square() - fresh).clamp(min=0).sqrt() * (z - alpha_t * clean) / sigma_t
        if self.eta:
            new = new + fresh.sqrt() * vector_diffusion.noise(canvas, request, z.shape[2])
        return new, clean
