"""Scores of positions, by which samplers decide what to write first."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.runtime import keyed_uniform
from redraft.samplers.shared import common
from redraft.types import Canvas, NoiseStream, Output, Request

BY_SAMPLE = frozenset({"confidence"})  # depend on the sampled token; others on the distribution, or on neither
_LOGARITHMS = frozenset({"confidence", "peak"})  # scores that are log-probabilities


def check(order: str) -> None:
    """Raises UserError if the order is unknown."""
    if order not in _SCORES:
        raise UserError(f"Unknown order '{order}'.", suggest(order, _SCORES))


def scores(order: str, canvas: Canvas, request: Request, out: Output) -> Tensor:
    """[R, W] scores; positions with the highest ones are written first; -inf where there is no target.

    confidence: log p of the sampled token; peak: log p of the likeliest token (the same at temperature 0); margin:
    p(1st) - p(2nd); entropy: -H(p), in nats; random: random numbers; left: the leftmost first.
    """
    return _SCORES[order](canvas, request, out)


def with_gumbel_noise(score: Tensor, order: str, temperature: float, canvas: Canvas, request: Request) -> Tensor:
    """Scores [R, W] whose k highest are a sample without replacement, p proportional to exp(score / temperature).

    This is the Gumbel-top-k trick (Kool et al. 2019, arXiv:1903.06059). Scores that are log-probabilities are replaced
    by probabilities, as in Dream's ``alg_temp`` (Ye et al. 2025, arXiv:2508.15487).
    """
    if temperature == 0:
        return score
    gumbel = -torch.log(-torch.log(order_noise(canvas, request)))
    plain = score.double().exp() if order in _LOGARITHMS else score.double()
    return (plain / temperature + gumbel).masked_fill(request.targets < 0, -torch.inf)


def order_noise(canvas: Canvas, request: Request) -> Tensor:
    """[R, W] uniform numbers keyed by seed, step and position, independent of those that sample tokens."""
    return keyed_uniform(
        canvas.seed[request.rows], canvas.step[request.rows] + NoiseStream.ORDER, request.targets.clamp(min=0)
    )


def entropy(out: Output) -> Tensor:
    """[N] entropy of the predictions, in nats."""
    return entropy_of(out.log_p)


def entropy_of(log_p: Tensor) -> Tensor:
    """[N] entropy of log-probabilities [N, V], in nats."""
    return -(log_p.exp() * log_p.clamp(min=-1e4)).sum(-1)


def _confidence(canvas: Canvas, request: Request, out: Output) -> Tensor:
    return out.conf


def _peak(canvas: Canvas, request: Request, out: Output) -> Tensor:
    return common.rectangle(out.log_p.amax(-1), request, -torch.inf)


def _margin(canvas: Canvas, request: Request, out: Output) -> Tensor:
    first, second = out.log_p.topk(2, -1).values.exp().unbind(-1)
    return common.rectangle(first - second, request, -torch.inf)


def _entropy(canvas: Canvas, request: Request, out: Output) -> Tensor:
    return common.rectangle(-entropy(out), request, -torch.inf)


def _random(canvas: Canvas, request: Request, out: Output) -> Tensor:
    return order_noise(canvas, request).masked_fill(request.targets < 0, -torch.inf)


def _left(canvas: Canvas, request: Request, out: Output) -> Tensor:
    return torch.where(request.targets < 0, -torch.inf, -request.targets.double())


_SCORES: dict[str, Callable[[Canvas, Request, Output], Tensor]] = {
    "confidence": _confidence,
    "peak": _peak,
    "margin": _margin,
    "entropy": _entropy,
    "random": _random,
    "left": _left,
}
