"""Psi sampler: the reverse of uniform noise, mixed with predicting everything and adding noise again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common, uniform_noise
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Psi(Sampler):
    """Psi samplers for uniform noise (arXiv:2602.21185). From t to s each token is sampled from

        k q(x_s | x_t, p) + (1 - k) (alpha_s q(x_0 | x_t, p) + (1 - alpha_s) / n)

    with p the model's prediction: with probability k from the reverse of the noise process (``Posterior``), else from
    the clean text that the process would lead to, with noise of the level s added. Both keep the share of noise at s.

    The time falls to the level at which a share ``plateau`` of the tokens is clean, stays there, and then falls to 0.
    At the plateau k is 1 - ``renew``, elsewhere 1: the plateau corrects tokens, as the loop of ``ReMDM`` does for
    masks.
    """

    steps: int = setting(32, "Number of denoising steps.", least=1, most=MAX_STEPS)
    renew: float = setting(0.2, "Share of the tokens that a step of the plateau predicts anew.", above=0, most=1)
    plateau: float = setting(0.9, "Share of clean tokens at the plateau.", above=0, below=1)
    begin: float = setting(0.45, "Share of the steps before the plateau.", least=0, most=1)
    stay: float = setting(0.5, "Share of the steps of the plateau.", least=0, most=1)

    retracts = True
    tries = {"steps": (8, 16, 32), "renew": (0.1, 0.3)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        uniform_noise.check(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return uniform_noise.requests_for_open(canvas, spec, self._time(canvas.step, spec))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        assert spec.family.schedule is not None
        step = canvas.step[request.rows]
        last = step + 1 >= self.steps
        alpha_t = spec.family.schedule.alpha(self._time(step, spec))
        alpha_s = torch.where(last, 1.0, spec.family.schedule.alpha(self._time(step + 1, spec)))
        tokens = uniform_noise.resample(canvas, request, out, spec, alpha_t, alpha_s)
        first, end = self._plateau()
        renew = torch.where((step >= first) & (step < end) & ~last, self.renew, 0.0)[:, None]
        if bool((renew > 0).any()):
            clean = uniform_noise.resample(canvas, request, out, spec, alpha_t, torch.ones_like(alpha_t))
            random = uniform_noise.random_ids(canvas, request, spec)
            uniform = uniform_noise.order(canvas, request)  # below renew it is uniform there, for the noise
            again = torch.where(uniform < renew * (1 - alpha_s)[:, None], random, clean)
            tokens = torch.where(uniform < renew, again, tokens)
        return None, uniform_noise.draft(request, out, tokens, last)

    def _plateau(self) -> tuple[int, int]:
        """The first step of the plateau, and the one after its last."""
        first = round(self.begin * self.steps)
        return first, min(self.steps, first + round(self.stay * self.steps))

    def _time(self, step: Tensor, spec: Spec) -> Tensor:
        """[R] float64 time before each ``step`` [R]."""
        first, end = self._plateau()
        level = common.time_of_share(spec, torch.tensor([1 - self.plateau], dtype=torch.float64))
        falling = 1 - (1 - level) * step.double() / max(first, 1)
        ending = level * (self.steps - step.double()) / max(self.steps - end, 1)
        return torch.where(step < first, falling, torch.where(step < end, level, ending)).clamp(min=0, max=1)
