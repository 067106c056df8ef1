"""DPM-Solver++: denoise vectors by second-order steps along the deterministic path, one pass each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS, MAX_STEPS
from redraft.noise import gaussian
from redraft.options import setting
from redraft.samplers.shared import vector_diffusion
from redraft.types import Canvas, Output, Request, Spec


@dataclass(frozen=True)
class DpmSolver(vector_diffusion.VectorSampler):
    """DPM-Solver++(2M) of Lu et al. 2022 (arXiv:2211.01095, algorithm 2). With l half the log-SNR, h = l_s - l_t, and x
    the predicted clean vectors,

        z_s = sigma_s / sigma_t z_t - alpha_s (e^-h - 1) D,    D = x + (x - x_before) / (2 r),    r = h_before / h

    At the first and the last step D = x, which is DDIM: the first has no previous prediction, and extrapolation is
    inaccurate at the last. With ``order`` 1 all steps are DDIM. It takes ``steps`` passes; latent models then decode
    their vectors, ``slice`` tokens of each row per pass.
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)
    order: int = setting(2, "Order of the solver.", choices=(1, 2))
    slice: int = setting(256, "Tokens of each row that a pass decodes.", least=1, most=MAX_POSITIONS, unit="tokens")

    def start(self, canvas: Canvas, spec: Spec) -> vector_diffusion.VectorState:
        return super().start(canvas, spec)

    def advance(
        self, canvas: Canvas, state: vector_diffusion.VectorState, spec: Spec, request: Request, out: Output
    ) -> tuple[Tensor, Tensor]:
        """The vectors of DPM-Solver++ after the step, and the predicted clean ones, [R, W, Z] each."""
        step = canvas.step[request.rows]
        snr_before, snr_t, snr_s = (
            vector_diffusion.log_snr(spec, at.clamp(min=0), self.steps) for at in (step - 1, step, step + 1)
        )
        z, clean = vector_diffusion.predicted(request, out, spec, snr_t)
        h, h_before = (snr_s - snr_t) / 2, (snr_t - snr_before) / 2
        inner = (step > 0) & (step + 1 < self.steps) & (h > 1e-6) & (h_before > 1e-6)
        weight = torch.where(inner & (self.order == 2), h / (2 * h_before.clamp(min=1e-6)), 0.0)
        previous = state.clean[request.rows].gather(1, request.targets.clamp(min=0)[..., None].expand_as(z))
        extrapolated = clean + weight.to(z)[:, None, None] * (clean - previous)
        alpha, sigma_s = (part.to(z)[:, None] for part in gaussian.coefficients(snr_s))
        _, sigma_t = (part.to(z)[:, None] for part in gaussian.coefficients(snr_t))
        new = sigma_s / sigma_t * z - alpha * torch.expm1(-h).to(z)[:, None, None] * extrapolated
        return new, clean
