"""Slow-fast: estimate how far predictions are reliable, then fill that stretch quickly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.limits import MAX_SCALE
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class SlowFastState:
    """The state of each row's cycle of a slow and a fast phase."""

    end: Tensor  # [B] one past the last position of the stretch in the fast phase; 0 in the slow phase
    estimate: Tensor  # [B] the last estimate of ``end``, -1 for none
    count: Tensor  # [B] number of estimates in this cycle


@dataclass(frozen=True)
class SlowFast(Sampler):
    """Slow-fast sampling (Wei et al. 2025, arXiv:2506.10848), by certainty, convergence and position.

    *Slow*: each pass estimates the end of the stretch as the last free position with p(x) >= ``reach``. The stretch is
    fixed when two consecutive estimates have a standard deviation below ``spread`` positions, or after ``explore``
    passes (then at their mean). *Fast*: passes predict only that stretch until it is full, and the next cycle begins
    after it. In both phases a pass writes all predicted positions with p(x) >= ``threshold`` if there are several, else
    the most confident one.

    In fast passes, the authors' code also removes the sequence after the stretch, which is an approximation. Here the
    network always reads the whole sequence, and only the targets are limited. ``block`` as in ``Confidence``.
    """

    reach: float = setting(0.3, "Confidence up to which a stretch reaches.", above=0, most=1)
    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    explore: int = setting(6, "Passes of the slow phase.", least=1, most=1000, unit="passes")
    spread: float = setting(
        1.0, "Standard deviation of two estimates below which the slow phase ends.", least=0, most=MAX_SCALE
    )
    block: int = block_option()

    tries = {"threshold": (0.5, 0.7, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> SlowFastState:
        common.check_diffusion(spec)
        zero = torch.zeros_like(canvas.step)
        return SlowFastState(zero, zero - 1, zero)

    def plan(self, canvas: Canvas, state: SlowFastState, spec: Spec) -> list[Request]:
        free = common.free_in_block(canvas, self.block, spec)
        stretch = free & (torch.arange(free.shape[1]) < state.end[:, None])
        return common.requests_for(canvas, spec, torch.where(stretch.any(1, keepdim=True), stretch, free), self.block)

    def apply(
        self, canvas: Canvas, state: SlowFastState, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[SlowFastState, Step]:
        request, conf = requests[0], outputs[0].conf
        confident = conf >= math.log(self.threshold)
        best = common.best(conf, (request.targets >= 0).any(1).long())
        chosen = torch.where((confident.sum(1) > 1)[:, None], confident, best)
        return self._updated(state, request, conf), common.write(request, outputs[0], chosen)

    def _updated(self, state: SlowFastState, request: Request, conf: Tensor) -> SlowFastState:
        """The state after one more estimate."""
        rows = request.rows
        first = torch.where(request.targets < 0, torch.iinfo(torch.int64).max, request.targets).amin(1)
        slow = first >= state.end[rows]  # the last stretch is full
        farthest = torch.where(conf >= math.log(self.reach), request.targets, -1).amax(1)
        estimate = torch.maximum(farthest, first) + 1
        before = state.estimate[rows]
        before = torch.where(before < first, -1, before)  # an estimate of a full stretch does not count
        count = torch.where(before < 0, 0, state.count[rows]) + 1
        deviation = (estimate - before).abs() / 2  # the standard deviation of two numbers
        converged = (before >= 0) & (deviation < self.spread)
        mean = torch.where(before >= 0, (estimate + before) // 2, estimate)
        end = torch.where(converged, estimate, torch.maximum(mean, first + 1))
        fixed = slow & (converged | (count >= self.explore))
        all_end, all_estimate, all_count = state.end.clone(), state.estimate.clone(), state.count.clone()
        all_end[rows] = torch.where(fixed, end, torch.where(slow, 0, state.end[rows]))
        all_estimate[rows] = torch.where(slow & ~fixed, estimate, -1)
        all_count[rows] = torch.where(slow & ~fixed, count, 0)
        return SlowFastState(all_end, all_estimate, all_count)
