"""Hierarchical: write confident positions, and split every run of free positions at its most confident one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Hierarchical(Sampler):
    """Hierarchical decoding (dInfer, Ma et al. 2025, arXiv:2510.08666).

    Writes all positions with p(x) > ``threshold``, the most confident position of every run of adjacent free positions
    if its p(x) > ``low``, and always the most confident one of all. So positions that are written together are far
    apart and depend little on each other, and runs are halved: about log2(n) passes at best. ``block`` as in
    ``Confidence``.
    """

    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    low: float = setting(0.6, "Confidence above which the best position of a stretch is written.", least=0, most=1)
    block: int = block_option()

    tries = {"threshold": (0.5, 0.7, 0.9), "low": (0.3, 0.5)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)
        if self.low > self.threshold:
            raise UserError(f"low = {self.low} must be at most threshold = {self.threshold}.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, conf = requests[0], outputs[0].conf
        confident = conf > math.log(self.threshold)
        splits = _best_of_each_run(conf, request.targets)
        if self.low > 0:
            splits &= conf > math.log(self.low)
        best = common.best(conf, (request.targets >= 0).any(1).long())
        return None, common.write(request, outputs[0], confident | splits | best)


def _best_of_each_run(conf: Tensor, targets: Tensor) -> Tensor:
    """[R, W] bool: the most confident position (leftmost of equals) of each run of adjacent positions in ``targets``.

    ``targets`` [R, W] are in ascending order.
    """
    before = torch.cat([targets.new_full((len(targets), 1), -2), targets[:, :-1]], 1)
    run = ((targets != before + 1) | (targets < 0)).cumsum(1) - 1  # [R, W] number of the run
    highest = torch.full_like(conf, -torch.inf).scatter_reduce(1, run, conf, "amax")
    top = (conf == highest.gather(1, run)) & (targets >= 0)
    count = top.cumsum(1)
    first = torch.full_like(count, conf.shape[1] + 1).scatter_reduce(1, run, (count - top.long()), "amin")
    return top & (count - first.gather(1, run) == 1)
