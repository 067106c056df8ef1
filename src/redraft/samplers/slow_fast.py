"""Slow-fast: look how far the model can see, then fill that stretch quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class State:
    """Where each row stands in its cycle of a slow phase and a fast one."""

    end: Tensor  # [B] first position after the stretch being filled; 0 in the slow phase
    seen: Tensor  # [B] the last estimate of it, -1 for none
    tries: Tensor  # [B] estimates of this cycle


@dataclass(frozen=True)
class SlowFast:
    """Slow-fast sampling (Wei et al. 2025, arXiv:2506.10848): certainty, convergence, position.

    *Slow*: each pass notes the farthest free position with p(x) >= ``reach``. When two estimates in a row have a
    standard deviation below ``spread`` positions, or after ``explore`` passes (then their mean), the stretch up to
    there is taken. *Fast*: passes look at that stretch alone until it is full, and the next cycle begins behind it. In
    both phases a pass writes all it sees with p(x) >= ``threshold`` if they are several, else the most certain one.

    The authors' code also cuts the text off behind the stretch in fast passes, an approximation; here the network
    always sees the whole text, and only predictions of the stretch are asked for. ``block`` as in ``Confidence``.
    """

    reach: float = 0.3
    threshold: float = 0.9
    explore: int = 6
    spread: float = 1.0
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"threshold": (0.5, 0.7, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> State:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_share("reach", self.reach)
        _open.check_share("threshold", self.threshold)
        if self.explore < 1:
            raise UserError(f"explore = {self.explore} must be at least 1.")
        if not self.spread >= 0:
            raise UserError(f"spread = {self.spread} must be at least 0.")
        zero = torch.zeros_like(canvas.step)
        return State(zero, zero - 1, zero)

    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Forward]:
        free = _open.free_in_block(canvas, self.block, spec)
        stretch = free & (torch.arange(free.shape[1]) < state.end[:, None])
        return _open.ask_for(canvas, spec, torch.where(stretch.any(1, keepdim=True), stretch, free), self.block)

    def apply(
        self, canvas: Canvas, state: State, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[State, Step]:
        ask, conf = asks[0], outs[0].conf
        assert ask.rows is not None
        sure = conf >= math.log(self.threshold)
        top = _open.best(conf, (ask.want >= 0).any(1).long())
        chosen = torch.where((sure.sum(1) > 1)[:, None], sure, top)
        return self._look(state, ask, conf), _open.write(ask, outs[0], chosen)

    def _look(self, state: State, ask: Forward, conf: Tensor) -> State:
        rows = ask.rows
        assert rows is not None
        first = torch.where(ask.want < 0, torch.iinfo(torch.int64).max, ask.want).amin(1)
        slow = first >= state.end[rows]  # the last stretch is full
        visible = torch.where(conf >= math.log(self.reach), ask.want, -1).amax(1)
        estimate = torch.maximum(visible, first) + 1
        before = state.seen[rows]
        before = torch.where(before < first, -1, before)  # of a stretch that is full
        tries = torch.where(before < 0, 0, state.tries[rows]) + 1
        apart = (estimate - before).abs() / 2  # the standard deviation of two numbers
        agreed = (before >= 0) & (apart < self.spread)
        given_up = tries >= self.explore
        mean = torch.where(before >= 0, (estimate + before) // 2, estimate)
        taken = torch.where(agreed, estimate, torch.maximum(mean, first + 1))
        settled = slow & (agreed | given_up)
        end, seen, count = state.end.clone(), state.seen.clone(), state.tries.clone()
        end[rows] = torch.where(settled, taken, torch.where(slow, 0, state.end[rows]))
        seen[rows] = torch.where(slow & ~settled, estimate, -1)
        count[rows] = torch.where(slow & ~settled, tries, 0)
        return State(end, seen, count)
