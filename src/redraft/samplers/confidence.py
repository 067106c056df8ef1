"""Confidence: write the most certain positions first, a fixed share of them at each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.runtime import keyed_uniform
from redraft.samplers import _open
from redraft.types import PAD, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Confidence:
    """Top-k by confidence (MaskGIT, Chang et al. 2022, arXiv:2202.04200; LLaDA's low-confidence remasking).

    At each of ``steps`` steps every free position is predicted and the k highest-scoring are written, with
    k = ceil(free / steps left). With ``block`` > 0 the choice is confined to the leftmost unfinished block of that
    many positions (semi-autoregressive), and the steps are shared out evenly over the blocks.

    ``order``: confidence p(x), margin p(1st) - p(2nd), entropy (lowest first), random, or left (leftmost first).
    """

    steps: int = 16
    order: str = "confidence"
    block: int = 0

    exact = False
    retracts = False
    width = 1

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        if self.order not in _SCORES:
            raise UserError(f"unknown order '{self.order}'.", suggest(self.order, _SCORES))
        _open.check_steps(self.steps, canvas, spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        scores = _SCORES[self.order](canvas, ask, out)
        return None, _open.write(ask, out, _open.best(scores, self._count(canvas, ask)))

    def _count(self, canvas: Canvas, ask: Forward) -> Tensor:
        """Positions to write now: what is free in the block, over the steps left for the block, rounded up."""
        assert ask.rows is not None
        rows, free = ask.rows, (ask.want >= 0).sum(1)
        if self.block == 0:
            left = self.steps - canvas.step[rows]
        else:
            first = canvas.prompt[rows]
            end = (canvas.status[rows] != PAD).long() * torch.arange(canvas.ids.shape[1])
            blocks = (end.amax(1) + 1 - first + self.block - 1).div(self.block, rounding_mode="floor").clamp(min=1)
            current = (ask.want.clamp(min=0).amax(1) - first).div(self.block, rounding_mode="floor")
            # Block b of n ends with step floor((b + 1) * steps / n).
            left = ((current + 1) * self.steps).div(blocks, rounding_mode="floor") - canvas.step[rows]
        return -(-free // left.clamp(min=1))


def _confidence(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return out.conf


def _margin(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    first, second = out.log_p.topk(2, -1).values.exp().unbind(-1)
    return _open.rectangle(first - second, ask, -torch.inf)


def _entropy(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return _open.rectangle((out.log_p.exp() * out.log_p.clamp(min=-1e4)).sum(-1), ask, -torch.inf)


def _random(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    assert ask.rows is not None
    drawn = keyed_uniform(canvas.seed[ask.rows], canvas.step[ask.rows] + _open.ORDER_STREAM, ask.want.clamp(min=0))
    return drawn.masked_fill(ask.want < 0, -torch.inf)


def _left(canvas: Canvas, ask: Forward, out: Output) -> Tensor:
    return torch.where(ask.want < 0, -torch.inf, -ask.want.double())


_SCORES = {"confidence": _confidence, "margin": _margin, "entropy": _entropy, "random": _random, "left": _left}
