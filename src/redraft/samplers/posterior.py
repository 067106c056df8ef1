"""Posterior: sample every open token again at every step, from the reverse of uniform noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import uniform_noise
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Posterior(Sampler):
    """Ancestral sampling for uniform noise (D3PM, arXiv:2107.03006; UDLM, arXiv:2412.10193): from t to s, each token
    is sampled from q(x_s | x_t, p), where p is the model's prediction. Each step is one pass for all open positions.

    Tokens may change until the last step, so there may be more steps than tokens.
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)

    retracts = True
    tries = {"steps": (4, 8, 16, 32)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        uniform_noise.check(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return uniform_noise.requests_for_open(canvas, spec, self._time(canvas.step))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        assert spec.family.schedule is not None
        step = canvas.step[request.rows]
        last = step + 1 >= self.steps
        alpha_t = spec.family.schedule.alpha(self._time(step))
        alpha_s = torch.where(last, 1.0, spec.family.schedule.alpha(self._time(step + 1)))
        tokens = uniform_noise.resample(canvas, request, out, spec, alpha_t, alpha_s)
        return None, uniform_noise.draft(request, out, tokens, last)

    def _time(self, step: Tensor) -> Tensor:
        return (1 - step.double() / self.steps).clamp(min=0)
