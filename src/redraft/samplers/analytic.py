"""Analytic: SEDD's sampler, which steps from t to s by the scores; for absorbing and uniform noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.noise.uniform import alphabet
from redraft.options import setting
from redraft.runtime import inverse_cdf, upload, widest
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common, ranking, uniform_noise
from redraft.types import Canvas, Output, Request, Spec, Step

_FIRST = 1 - 1e-3  # first time under uniform noise, where training ends: at t = 1 the scores carry no information


@dataclass(frozen=True)
class Analytic(Sampler):
    """Tweedie tau-leaping of SEDD (Lou et al. 2024, arXiv:2310.16834, section 4.2): positions are sampled from

        p(x_s = y) ~ [exp(-ds Q) s]_y [exp(ds Q)]_{x_t, y},   ds = log(alpha_s / alpha_t),  Q the rates of the noise,

    which is optimal among samplers that treat positions independently. The last step leaves no noise. By process:

    - Absorbing: a mask is replaced with probability (alpha_s - alpha_t) / (1 - alpha_t) e^g, at most 1, where g is the
      log of the scores' total over its exact value (0 for models that predict tokens: then this is ``Ancestral``).
    - Uniform: p(x_s = y) ~ max(f_y - (1 - a) / n, 0) ((1 - a) / n + a [y = x_t]) with a = alpha_t / alpha_s. For a
      score model f = softmax(logits); for a model that predicts tokens f = alpha_t p + (1 - alpha_t) / n, and then this
      is ``Posterior``. Temperature and top-p apply to the last step, which samples from p(x_0).
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)

    retracts = True
    tries = {"steps": (4, 8, 16, 32)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_noise(spec)

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
        if spec.masks:
            return None, self._reveal(canvas, request, out, spec, alpha_t, alpha_s)
        return None, uniform_noise.draft(request, out, self._leap(canvas, request, out, spec, alpha_t, alpha_s), last)

    def _reveal(
        self, canvas: Canvas, request: Request, out: Output, spec: Spec, alpha_t: Tensor, alpha_s: Tensor
    ) -> Step:
        row = (request.targets >= 0).nonzero()[:, 0]
        log_z = None if out.log_z is None else out.log_z.cpu()
        chance = common.rectangle(reveal_probability(log_z, alpha_t[row], alpha_s[row], spec), request, 0.0)
        uniform = ranking.order_noise(canvas, request)
        return common.write(request, out, (request.targets >= 0) & ((uniform < chance) | (alpha_s >= 1)[:, None]))

    def _leap(
        self, canvas: Canvas, request: Request, out: Output, spec: Spec, alpha_t: Tensor, alpha_s: Tensor
    ) -> Tensor:
        """[R, W] sampled ids."""
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        rows, own = request.rows[row], uniform_noise.own_tokens(canvas, request)[row, column]
        log_q = leap(out.log_p, upload(own, out.log_p.device), alpha_t[row], alpha_s[row], spec)
        uniform = ranking.order_noise(canvas, request)[row, column]
        sampling, end = canvas.sampling.at(rows), alpha_s[row] >= 1
        greedy = end & (sampling.temperature == 0)
        sampling = sampling.where(end & ~greedy)
        sampling = replace(sampling, top_k=torch.where(greedy, 1, sampling.top_k))
        chosen = inverse_cdf(log_q, uniform, sampling)
        return torch.zeros_like(request.targets).index_put((row, column), chosen.cpu())

    def _time(self, step: Tensor, spec: Spec) -> Tensor:
        first = 1.0 if spec.masks else _FIRST
        return first * (1 - step.double() / self.steps).clamp(min=0)


def reveal_probability(log_z: Tensor | None, alpha_t: Tensor, alpha_s: Tensor, spec: Spec) -> Tensor:
    """[N] probability that a mask is replaced between t and s; ``log_z`` [N] as in ``Output``."""
    chance = (alpha_s - alpha_t) / (1 - alpha_t)
    if log_z is None:
        return chance
    letters = spec.tokens.vocab_size - len({*spec.tokens.forbidden, spec.tokens.mask_id})
    return chance * (log_z.double() - math.log(letters)).exp()


def leap(log_p: Tensor, own: Tensor, alpha_t: Tensor, alpha_s: Tensor, spec: Spec) -> Tensor:
    """log p(x_s = y) under uniform noise, up to a constant: [N, V], ``own`` [N] ids x_t, alphas [N] -> [N, V]."""
    where = log_p.device
    letters = upload(alphabet(spec), where)
    n, f = len(letters), log_p.to(widest(where)).exp()
    now, kept = upload(alpha_t, where)[:, None], upload(alpha_t / alpha_s, where)[:, None]
    if not spec.scores:
        f = torch.zeros_like(f).index_copy_(1, letters, now * f[:, letters] + (1 - now) / n)
    before = (f - (1 - kept) / n).clamp(min=0)
    before = torch.where(before.sum(1, keepdim=True) > 0, before, f)  # for scores without information
    noise = ((1 - kept) / n).expand_as(f)
    return (before * noise.scatter_add(1, own[:, None], kept)).log()
