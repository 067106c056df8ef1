"""Sub-blocks: fill a block in parts from left to right, each by a threshold of confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.limits import MAX_POSITIONS
from redraft.options import setting
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import CacheHint, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class SubBlocks(Sampler):
    """The decoding of Fast-dLLM v2 (Wu et al. 2025, arXiv:2509.26328).

    Only the free positions of the leftmost unfinished sub-block of ``size`` positions are predicted, and those with
    p(x) > ``threshold`` are written, and always the most confident one. Sub-blocks are counted from the beginning of
    the text.

    In a block model with shift 1, the first position of a block is predicted at the last position of the block before.
    It is written alone, in a pass that ends there and also computes the final keys and values of that block. With the
    cache ``sub_block``, most of the other passes run one sub-block.
    """

    threshold: float = setting(0.9, "Confidence above which a position is written.", above=0, most=1)
    size: int = setting(8, "Positions of a sub-block.", least=1, most=MAX_POSITIONS, unit="positions")

    tries = {"threshold": (0.5, 0.7, 0.9)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        free = common.free_in_block(canvas, 0, spec)
        columns = torch.arange(free.shape[1])
        first = torch.where(free, columns, len(columns)).amin(1, keepdim=True)
        begins = self._begins_block(canvas, spec, first)
        chosen = torch.where(begins, columns == first, columns // self.size == first // self.size)
        found = common.requests_for(canvas, spec, free & chosen)
        return [self._narrowed(request, first[request.rows], begins[request.rows]) for request in found]

    def _narrowed(self, request: Request, first: Tensor, begins: Tensor) -> Request:
        """The request without the positions from ``first`` [R, 1] on in rows that write it alone (``begins`` [R, 1]),
        and with its sub-block as active region."""
        positions = request.positions.masked_fill(begins & (request.positions >= first), -1)
        width = int(positions.max()) + 1
        begin = first // self.size * self.size
        end = torch.minimum(begin + self.size, positions.amax(1, keepdim=True) + 1)
        return replace(
            request,
            tokens=request.tokens[:, :width],
            positions=positions[:, :width],
            cache=CacheHint(active_region=torch.cat([begin, end], 1)),
        )

    def _begins_block(self, canvas: Canvas, spec: Spec, first: Tensor) -> Tensor:
        """[B, 1] bool: the position ``first`` [B, 1] is the first of an attention group, and is predicted before it."""
        if spec.network.shift == 0 or spec.network.attention.kind != "block":
            return torch.zeros_like(first, dtype=torch.bool)
        prompt = canvas.prompt if spec.network.prompt_encoder else None
        before = torch.cat([first - 1, first], 1)
        group = spec.network.attention.group(before, prompt)
        return (first > 0) & (group[:, :1] < group[:, 1:])

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        best = common.best(out.conf, torch.ones_like(request.rows))
        return None, common.write(request, out, (out.conf > math.log(self.threshold)) | best)
