"""Predictor-corrector: steps of the reverse of uniform noise, and correction steps that sample some tokens again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.noise.uniform import alphabet
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common, uniform_noise
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """After each predictor step (``Posterior``) except the last, ``corrections`` passes at the same noise level. Each
    samples a ``share`` of the open tokens again (Campbell et al. 2022, arXiv:2205.14987, for correctors;
    arXiv:2605.22765 for this one). There are steps + (steps - 1) corrections passes.

    Sampling a token of x_t given all others, from alpha p + (1 - alpha) / n, preserves the distribution at t (Gibbs
    sampling), because the prediction of a model trained on the bound of uniform noise does not depend on the token at
    the same position. For a model trained as a plain classifier it does, and log(1 + n alpha / (1 - alpha)) would have
    to be subtracted from that token's logit first.

    ``order`` chooses the tokens: ``random`` ones, which preserves the model's distribution; or by ``margin``, those
    with the lowest log-probability relative to the best other token, which sharpens it like a low temperature.
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)
    corrections: int = setting(1, "Corrector passes after each step.", least=0, most=100, unit="passes")
    share: float = setting(0.1, "Share of the open tokens that a corrector pass samples again.", above=0, most=1)
    order: Literal["margin", "random"] = setting("margin", "Which tokens a corrector pass samples again.")

    retracts = True
    tries = {"steps": (4, 8, 16), "corrections": (1, 2)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        uniform_noise.check(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        step, correcting = self._predictor_step(canvas.step)
        return uniform_noise.requests_for_open(canvas, spec, self._time(step + correcting))

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        assert spec.family.schedule is not None
        step, correcting = self._predictor_step(canvas.step[request.rows])
        last = step + 1 >= self.steps
        alpha_t = spec.family.schedule.alpha(self._time(step))
        alpha_s = torch.where(last, 1.0, spec.family.schedule.alpha(self._time(step + 1)))
        predicted = uniform_noise.resample(canvas, request, out, spec, alpha_t, alpha_s)
        corrected = self._correct(canvas, request, out, spec, alpha_s)
        tokens = torch.where(correcting[:, None], corrected, predicted)
        return None, uniform_noise.draft(request, out, tokens, last)

    def _correct(self, canvas: Canvas, request: Request, out: Output, spec: Spec, alpha: Tensor) -> Tensor:
        own, real = uniform_noise.own_tokens(canvas, request), request.targets >= 0
        if self.order == "random":
            score = uniform_noise.order(canvas, request)
        else:
            score = self._doubt(request, out, own, alpha, len(alphabet(spec)))
        chosen = common.best(score.masked_fill(~real, -torch.inf), (self.share * real.sum(1)).ceil().long())
        is_noise, random = uniform_noise.random_tokens(canvas, request, spec, 1 - alpha)
        return torch.where(chosen, torch.where(is_noise, random, out.token), own)

    def _doubt(self, request: Request, out: Output, own: Tensor, alpha: Tensor, n: int) -> Tensor:
        """[R, W] log-probability of the best other token minus that of the current one."""
        p_own = uniform_noise.log_p_of(own, request, out).exp()
        best = out.log_p.topk(2, -1)
        first, second, top = common.rectangles(
            request, (best.values[:, 0], -torch.inf), (best.values[:, 1], -torch.inf), (best.indices[:, 0], -1)
        )
        first, second = first.double().exp(), second.double().exp()
        noise = ((1 - alpha) / n)[:, None]
        other = alpha[:, None] * torch.where(top == own, second, first) + noise
        return other.log() - (alpha[:, None] * p_own + noise).log()

    def _predictor_step(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """[R] the predictor step of each row, and [R] bool: it is in one of the correction passes after it."""
        cycle = self.corrections + 1
        return step.div(cycle, rounding_mode="floor"), step % cycle > 0

    def _time(self, step: Tensor) -> Tensor:
        return (1 - step.double() / self.steps).clamp(min=0)
