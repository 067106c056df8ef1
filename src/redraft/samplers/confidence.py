"""Confidence: write the most certain positions first, a fixed share of them at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError, suggest
from redraft.samplers import _open, _scores
from redraft.types import DRAFT, FREE, PAD, SEALED, Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Confidence:
    """Top-k by confidence (MaskGIT, Chang et al. 2022, arXiv:2202.04200; LLaDA's low-confidence remasking).

    At each of ``steps`` steps every free position is predicted and the k highest-scoring are written. With ``block``
    > 0 the choice is confined to the leftmost unfinished block of that many positions (semi-autoregressive), and the
    steps are shared out evenly over the blocks.

    ``order``: confidence p(x) of the drawn token, peak p(1st) of the likeliest, margin p(1st) - p(2nd), entropy
    (lowest first), random, or left (leftmost first).

    ``schedule``: linear, k = ceil(free / steps left), or cosine (MaskGIT): after step s of T floor(n cos(pi s / 2T)) of
    n positions are left, so that little is written while little is known. At least one a step.

    ``position_temperature`` > 0 draws the positions instead, in proportion to exp(score / temperature), the score being
    p for confidence and peak (Dream's ``alg_temp``).
    """

    steps: int = 16
    order: str = "confidence"
    block: int = 0
    schedule: str = "linear"
    position_temperature: float = 0.0

    exact = False
    retracts = False
    width = 1
    tries = {"order": ("confidence", "margin", "entropy"), "schedule": ("linear", "cosine")}

    @property
    def positions(self) -> Literal["noise", "distribution", "draw"]:
        """What decides where is written (see ``likelihood.under``)."""
        if self.order in _scores.BY_DRAW:
            return "draw"
        return "noise" if self.order == "random" or self.position_temperature > 0 else "distribution"

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _scores.check(self.order)
        if self.schedule not in ("linear", "cosine"):
            raise UserError(f"unknown schedule '{self.schedule}'.", suggest(self.schedule, ("linear", "cosine")))
        if not 0 <= self.position_temperature < math.inf:
            raise UserError(f"position_temperature = {self.position_temperature} must be a number of at least 0.")
        _open.check_steps(self.steps, canvas, spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        return None, _open.write(asks[0], outs[0], self.chosen(canvas, asks[0], outs[0]))

    def chosen(self, canvas: Canvas, ask: Forward, out: Output) -> Tensor:
        """[R, W] bool: what is written now."""
        scores = _scores.scores(self.order, canvas, ask, out)
        scores = _scores.shuffled(scores, self.order, self.position_temperature, canvas, ask)
        return _open.best(scores, self.count(canvas, ask))

    def count(self, canvas: Canvas, ask: Forward) -> Tensor:
        """[R] positions to write now."""
        assert ask.rows is not None
        free, step = (ask.want >= 0).sum(1), canvas.step[ask.rows]
        begin, end, total = self._share(canvas, ask)
        if self.schedule == "linear":
            return -(-free // (end - step).clamp(min=1))
        progress = ((step + 1 - begin) / (end - begin).clamp(min=1)).clamp(max=1).double()
        keep = (total * torch.cos(progress * math.pi / 2)).floor().long()
        return (free - keep).clamp(min=1)

    def _share(self, canvas: Canvas, ask: Forward) -> tuple[Tensor, Tensor, Tensor]:
        """[R] each: the first step of the block at work, the one it ends before, and how many positions it has to
        write in all, those written before included."""
        assert ask.rows is not None
        rows, status = ask.rows, canvas.status[ask.rows]
        mine = (status == FREE) | (status == DRAFT) | (status == SEALED)
        zero, steps = torch.zeros_like(rows), torch.full_like(rows, self.steps)
        if self.block == 0:
            return zero, steps, mine.sum(1)
        first, columns = canvas.prompt[rows], torch.arange(status.shape[1])
        end = ((status != PAD).long() * columns).amax(1) + 1
        blocks = (end - first + self.block - 1).div(self.block, rounding_mode="floor").clamp(min=1)
        current = (ask.want.clamp(min=0).amax(1) - first).div(self.block, rounding_mode="floor")
        here = (columns - first[:, None]).div(self.block, rounding_mode="floor") == current[:, None]
        # Block b of n ends with step floor((b + 1) * steps / n).
        until = [(current + more) * self.steps // blocks for more in (0, 1)]
        return until[0], until[1], (mine & here).sum(1)
