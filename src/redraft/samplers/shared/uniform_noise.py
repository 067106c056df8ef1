"""Samplers for uniform noise: all open positions are requested at every pass, and are drafts until the last step."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.uniform import Uniform, alphabet
from redraft.runtime import keyed_uniform, upload
from redraft.samplers.shared import common
from redraft.types import DRAFT, SEALED, Canvas, NoiseStream, Output, Request, Spec, Step

# Noise streams that choose the mixture component of a token, random tokens, and positions.
_COMPONENT, _TOKENS, _ORDER = NoiseStream.ORDER, NoiseStream.KIND, NoiseStream.CHOICE


def check(spec: Spec) -> None:
    """Raises UserError if the model has another kind of noise or output."""
    common.check_noise(spec)
    if spec.masks:
        raise UserError(
            "This sampler is for uniform noise; this model has absorbing noise.",
            "Use the sampler confidence or ancestral.",
        )
    if spec.scores:
        raise UserError(
            "This sampler needs predictions of tokens; this model predicts scores.", "Use the sampler analytic."
        )


def requests_for_open(canvas: Canvas, spec: Spec, time: Tensor) -> list[Request]:
    """One request for all open positions, or none if there are none. ``time`` [B] float64."""
    rows = canvas.open.any(1).nonzero()[:, 0]
    if not len(rows):
        return []
    t = time[rows].float() if spec.network.timed else None
    return [common.request(canvas, spec, rows, canvas.open[rows], t)]


def own_tokens(canvas: Canvas, request: Request) -> Tensor:
    """[R, W] the current tokens at the target positions."""
    return canvas.ids[request.rows].gather(1, request.targets.clamp(min=0))


def log_p_of(tokens: Tensor, request: Request, out: Output) -> Tensor:
    """[R, W] log-probability of these tokens [R, W], as float64 on the host."""
    flat = upload(tokens[request.targets >= 0], out.log_p.device)
    return common.rectangle(out.log_p.gather(1, flat[:, None])[:, 0], request, 0.0).double()


def resample(canvas: Canvas, request: Request, out: Output, spec: Spec, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """Sample x_s from q(x_s | x_t, p) at every target position -> [R, W] ids. ``alpha_s`` [R] is 1 at the last step.

    The posterior (``noise.uniform``) is a mixture of three components: the model's sampled token, with mass
    alpha_s - alpha_t; a uniformly random token, with mass (1 - alpha_t / alpha_s)(1 - alpha_s); the current token, with
    the rest. So temperature and top-p apply to the model's token. At temperature 0 the last step takes the likeliest
    token.
    """
    n, own = len(alphabet(spec)), own_tokens(canvas, request)
    p_own = log_p_of(own, request, out).exp()
    now, then = alpha_t[:, None], alpha_s[:, None]
    kept = now / then
    clean, noise = then - now, (1 - kept) * (1 - then)
    unchanged = n * now * p_own + kept - now
    seed, noise_step = canvas.seed[request.rows], canvas.step[request.rows]
    at = request.targets.clamp(min=0)
    uniform = keyed_uniform(seed, noise_step + _COMPONENT, at) * (clean + noise + unchanged)
    greedy = (canvas.sampling.temperature[request.rows] == 0)[:, None] & (then >= 1)
    is_clean = torch.where(greedy, out.conf.double().exp() * clean > p_own * (n * now + clean), uniform < clean)
    random = random_ids(canvas, request, spec)
    return torch.where(is_clean, out.token, torch.where((uniform < clean + noise) & ~greedy, random, own))


def random_ids(canvas: Canvas, request: Request, spec: Spec) -> Tensor:
    """[R, W] uniformly random ids for the targets in this step."""
    key = canvas.step[request.rows] + _TOKENS
    return Uniform().sample(canvas.seed[request.rows], key, request.targets.clamp(min=0), spec)


def random_tokens(canvas: Canvas, request: Request, spec: Spec, chance: Tensor) -> tuple[Tensor, Tensor]:
    """[R, W] bool: positions that noise replaces, with probability ``chance`` [R], and [R, W] random ids."""
    seed, noise_step, at = canvas.seed[request.rows], canvas.step[request.rows], request.targets.clamp(min=0)
    is_noise = keyed_uniform(seed, noise_step + _COMPONENT, at) < chance[:, None]
    return is_noise, random_ids(canvas, request, spec)


def order(canvas: Canvas, request: Request) -> Tensor:
    """[R, W] uniform numbers, for choosing positions at random."""
    return keyed_uniform(canvas.seed[request.rows], canvas.step[request.rows] + _ORDER, request.targets.clamp(min=0))


def draft(request: Request, out: Output, tokens: Tensor, last: Tensor) -> Step:
    """The step that writes ``tokens`` [R, W] at all targets: sealed in rows at their ``last`` step [R], else drafts."""
    row, column = (request.targets >= 0).nonzero(as_tuple=True)
    return Step(
        row=request.rows[row],
        pos=request.targets[row, column],
        token=tokens[row, column],
        status=torch.where(last[row], SEALED, DRAFT),
        conf=log_p_of(tokens, request, out)[row, column].float(),
    )
