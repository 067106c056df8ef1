"""Hierarchical: besides what is certain, split every gap at its most certain position."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.samplers import _open
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class Hierarchical:
    """Hierarchical decoding (dInfer, Ma et al. 2025, arXiv:2510.08666).

    Writes all positions with p(x) > ``threshold`` and, of every run of neighbouring free positions, the most certain
    one if its p(x) > ``low``; the most certain one of all in any case. What is written at once thus stands far apart,
    where tokens depend little on each other, and the runs halve: about log2(n) passes at best. ``block`` as in
    ``Confidence``.
    """

    threshold: float = 0.9
    low: float = 0.6
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"threshold": (0.5, 0.7, 0.9), "low": (0.3, 0.5)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _open.check_share("threshold", self.threshold)
        if not 0 <= self.low <= self.threshold:
            raise UserError(f"low = {self.low} must lie between 0 and threshold = {self.threshold}.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, conf = asks[0], outs[0].conf
        sure = conf > math.log(self.threshold)
        heads = _best_of_each_run(conf, ask.want)
        if self.low > 0:
            heads &= conf > math.log(self.low)
        top = _open.best(conf, (ask.want >= 0).any(1).long())
        return None, _open.write(ask, outs[0], sure | heads | top)


def _best_of_each_run(conf: Tensor, want: Tensor) -> Tensor:
    """[R, W] bool: the highest (leftmost of equals) of each run of neighbours in ``want``, which ascends."""
    before = torch.cat([want.new_full((len(want), 1), -2), want[:, :-1]], 1)
    run = ((want != before + 1) | (want < 0)).cumsum(1) - 1  # [R, W] number of the run
    highest = torch.full_like(conf, -torch.inf).scatter_reduce(1, run, conf, "amax")
    top = (conf == highest.gather(1, run)) & (want >= 0)
    count = top.cumsum(1)
    first = torch.full_like(count, conf.shape[1] + 1).scatter_reduce(1, run, (count - top.long()), "amin")
    return top & (count - first.gather(1, run) == 1)
