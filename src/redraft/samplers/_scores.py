"""How sure the network is of a position: the scores by which samplers decide what to write first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.runtime import keyed_uniform
from redraft.samplers import _open
from redraft.types import Canvas, Forward, Output

BY_DRAW = frozenset({"confidence"})  # look at the drawn token; all others at the whole distribution, or at nothing
_LOGARITHMS = frozenset({"confidence", "peak"})


def check(order: str) -> None:
    """Raises UserError for an order that is not known."""
    if order not in _SCORES:
        raise UserError(f"unknown order '{order}'.", suggest(order, _SCORES))


def scores(order: str, canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    """[R, W] the higher, the sooner; -inf where nothing was wanted.

    confidence: log p of the drawn token; peak: log p of the likeliest one (the same at temperature 0); margin:
    p(1st) - p(2nd); entropy: -H(p), in nats; random: noise; left: the leftmost first.
    """
    return _SCORES[order](canvas, ask, out)


def shuffled(score: Tensor, order: str, temperature: float, canvas: Canvas, ask: Forward) -> Tensor:
    """Scores whose k highest are k positions drawn without replacement, p proportional to exp(score / temperature).

    That is the Gumbel-top-k trick (Kool et al. 2019, arXiv:1903.06059). Logarithms count as probabilities here, as in
    Dream's ``alg_temp`` (Ye et al. 2025, arXiv:2508.15487).
    """
    if temperature == 0:
        return score
    gumbel = -torch.log(-torch.log(order_noise(canvas, ask)))
    plain = score.double().exp() if order in _LOGARITHMS else score.double()
    return (plain / temperature + gumbel).masked_fill(ask.want < 0, -torch.inf)


def order_noise(canvas: Canvas, ask: Forward) -> Tensor:
    """[R, W] uniform noise that depends on seed, step and position alone, apart from the noise that draws tokens."""
    assert ask.rows is not None
    return keyed_uniform(canvas.seed[ask.rows], canvas.step[ask.rows] + _open.ORDER_STREAM, ask.want.clamp(min=0))


def entropy(out: Output) -> Tensor:
    """[N] of the predictions, in nats."""
    return -(out.log_p.exp() * out.log_p.clamp(min=-1e4)).sum(-1)


def _confidence(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return out.conf


def _peak(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return _open.rectangle(out.log_p.amax(-1), ask, -torch.inf)


def _margin(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    first, second = out.log_p.topk(2, -1).values.exp().unbind(-1)
    return _open.rectangle(first - second, ask, -torch.inf)


def _entropy(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return _open.rectangle(-entropy(out), ask, -torch.inf)


def _random(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return order_noise(canvas, ask).masked_fill(ask.want < 0, -torch.inf)


def _left(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return torch.where(ask.want < 0, -torch.inf, -ask.want.double())


_SCORES: dict[str, Callable[[Canvas, Forward, Output], Tensor]] = {
    "confidence": _confidence,
    "peak": _peak,
    "margin": _margin,
    "entropy": _entropy,
    "random": _random,
    "left": _left,
}
