"""What samplers for uniform noise share: open positions are asked for at every pass, and are drafts till the last."""

from __future__ import annotations

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.uniform import Uniform, alphabet
from redraft.runtime import keyed_uniform
from redraft.samplers import _open
from redraft.types import DRAFT, SEALED, Canvas, Forward, Output, Spec, Step

# Streams of noise: which way a token goes, which random one it becomes, and which are chosen.
_ROUTES, _TOKENS, _ORDER = _open.ORDER_STREAM, 3 << 40, 5 << 40


def check(spec: Spec, steps: int) -> None:
    """Raises UserError for a model of another kind, or no steps."""
    _open.check_noise(spec)
    if spec.process != "uniform":
        raise UserError(
            f"this sampler is for diffusion with uniform noise: this model knows {spec.process} noise.",
            "Use the sampler confidence or ancestral.",
        )
    if spec.score:
        raise UserError("this sampler needs predictions, and this model gives scores.", "Use the sampler analytic.")
    if steps < 1:
        raise UserError(f"steps = {steps} must be at least 1.")


def ask_open(canvas: Canvas, spec: Spec, time: Tensor) -> list[Forward]:
    """One request for every open position of the rows that have any, or none. ``time`` [B] float64."""
    rows = canvas.open.any(1).nonzero()[:, 0]
    if not len(rows):
        return []
    t = time[rows].float() if spec.timed else None
    return [_open.ask(canvas, spec, rows, canvas.open[rows], t)]


def own_tokens(canvas: Canvas, ask: Forward) -> Tensor:
    """[R, W] the tokens that stand at the wanted positions."""
    assert ask.rows is not None
    return canvas.ids[ask.rows].gather(1, ask.want.clamp(min=0))


def log_p_of(tokens: Tensor, ask: Forward, out: Output) -> Tensor:
    """[R, W] log-probability of these tokens [R, W], as float64 on the host."""
    flat = tokens[ask.want >= 0].to(out.log_p.device)
    return _open.rectangle(out.log_p.gather(1, flat[:, None])[:, 0].double(), ask, 0.0)


def resample(canvas: Canvas, ask: Forward, out: Output, spec: Spec, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """Draw x_s from q(x_s | x_t, p) at every wanted position -> [R, W] ids. ``alpha_s`` [R] is 1 at the end.

    The posterior (``noise.uniform``) is a mixture of three ways to go: to what the model drew, with mass
    alpha_s - alpha_t; to any token, (1 - alpha_t / alpha_s)(1 - alpha_s); or nowhere, with the rest. So temperature and
    top-p act on what the model draws. At temperature 0 the last step takes the likeliest token.
    """
    assert ask.rows is not None
    n, own = len(alphabet(spec)), own_tokens(canvas, ask)
    p_own = log_p_of(own, ask, out).exp()
    now, then = alpha_t[:, None], alpha_s[:, None]
    kept = now / then
    clean, noise = then - now, (1 - kept) * (1 - then)
    stay = n * now * p_own + kept - now
    seed, stamp = canvas.seed[ask.rows], canvas.step[ask.rows]
    where = ask.want.clamp(min=0)
    draw = keyed_uniform(seed, stamp + _ROUTES, where) * (clean + noise + stay)
    greedy = (canvas.draw.temperature[ask.rows] == 0)[:, None] & (then >= 1)
    goes = torch.where(greedy, out.conf.double().exp() * clean > p_own * (n * now + clean), draw < clean)
    random = Uniform().draw(seed, stamp + _TOKENS, where, spec)
    return torch.where(goes, out.token, torch.where((draw < clean + noise) & ~greedy, random, own))


def random_tokens(canvas: Canvas, ask: Forward, spec: Spec, chance: Tensor) -> tuple[Tensor, Tensor]:
    """[R, W] where noise falls, with the chance [R], and the tokens it brings."""
    assert ask.rows is not None
    seed, stamp, where = canvas.seed[ask.rows], canvas.step[ask.rows], ask.want.clamp(min=0)
    falls = keyed_uniform(seed, stamp + _ROUTES, where) < chance[:, None]
    return falls, Uniform().draw(seed, stamp + _TOKENS, where, spec)


def order(canvas: Canvas, ask: Forward) -> Tensor:
    """[R, W] uniform numbers by which to choose positions at random."""
    assert ask.rows is not None
    return keyed_uniform(canvas.seed[ask.rows], canvas.step[ask.rows] + _ORDER, ask.want.clamp(min=0))


def draft(ask: Forward, out: Output, tokens: Tensor, last: Tensor) -> Step:
    """The step that writes tokens [R, W] at all wanted positions: sealed in the rows at their ``last``, else drafts."""
    assert ask.rows is not None
    row, column = (ask.want >= 0).nonzero(as_tuple=True)
    return Step(
        row=ask.rows[row],
        pos=ask.want[row, column],
        token=tokens[row, column],
        status=torch.where(last[row], SEALED, DRAFT),
        conf=log_p_of(tokens, ask, out)[row, column].float(),
    )
