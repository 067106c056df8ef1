"""Several blocks in flight: the next block begins before the one before it is finished."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS, MAX_SCALE
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common, ranking
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class MultiBlock(Sampler):
    """The decoding of d3LLM (arXiv:2601.07568) and, with other values, of D2F (arXiv:2508.09192).

    The answer is cut into blocks of ``block`` positions. A block is *added* when a share ``add`` of the added block
    before it is written, and it becomes *active* when a share ``active`` of the active block before it is written; the
    first block is both. Each pass predicts the free positions of all added blocks, and writes every position that is
    certain enough. The first unfinished active block in which nothing was certain writes its most certain position.

    d3LLM: entropy below a threshold, add 0.5, active 0.5. D2F: confidence above 0.9, add 0.1, active 0.95. With both
    shares 1, one block is generated after the other.
    """

    block: int = setting(32, "Positions of a block.", least=1, most=MAX_POSITIONS, unit="positions")
    measure: Literal["entropy", "confidence"] = setting("entropy", "What certainty is measured by.")
    threshold: float = setting(
        0.4, "Entropy in nats below which, or confidence above which, a position is written.", least=0, most=MAX_SCALE
    )
    add: float = setting(0.5, "Written share of a block at which the next one is added.", above=0, most=1)
    active: float = setting(0.5, "Written share of a block at which the next one must make progress.", above=0, most=1)

    tries = {"block": (8, 32), "threshold": (0.2, 0.4, 0.8)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        free = common.free_in_block(canvas, 0, spec)
        number = self._blocks(canvas)
        added = number <= self._reached(free, number, self.add)[:, None]
        return common.requests_for(canvas, spec, free & added, 0)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        free = common.free_in_block(canvas, 0, spec)
        rows, real, at = request.rows, request.targets >= 0, request.targets.clamp(min=0)
        number = self._blocks(canvas)
        own = number[rows].gather(1, at)
        certainty = ranking.scores("entropy" if self.measure == "entropy" else "confidence", canvas, request, out)
        least = -self.threshold if self.measure == "entropy" else math.log(max(self.threshold, 1e-300))
        sure = real & (certainty > least)
        reached = self._reached(free, number, self.active)[rows, None]
        written = torch.zeros(len(rows), int(own.max()) + 1, dtype=torch.int64)  # positions of each block, in this pass
        written.scatter_add_(1, own.clamp(min=0), sure.long())
        idle = real & (own <= reached) & (written.gather(1, own.clamp(min=0)) == 0)
        first = torch.where(idle, own, torch.iinfo(own.dtype).max).amin(1, keepdim=True)
        stuck = certainty.masked_fill(~idle | (own != first), -torch.inf)
        return None, common.write(request, out, sure | common.best(stuck, torch.ones_like(rows)))

    def _blocks(self, canvas: Canvas) -> Tensor:
        """[B, L] the number of each position's block, from 0; negative in the prompt."""
        columns = torch.arange(canvas.ids.shape[1])
        return (columns[None] - canvas.prompt[:, None]).div(self.block, rounding_mode="floor")

    def _reached(self, free: Tensor, number: Tensor, share: float) -> Tensor:
        """[B] the last block to which a written ``share`` of all blocks before it leads."""
        count = int(number.max()) + 1
        index = number.clamp(min=0)
        left = torch.zeros(len(free), count, dtype=torch.int64).scatter_add_(1, index, (free & (number >= 0)).long())
        size = torch.zeros_like(left).scatter_add_(1, index, (number >= 0).long())
        written = (size - left) >= share * size
        return written.to(torch.int64).cumprod(1).sum(1).clamp(max=count - 1)
