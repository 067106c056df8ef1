"""Confidence: write the most confident positions first, a fixed share of them at each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from redraft.limits import MAX_STEPS
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common, ranking
from redraft.types import DRAFT, FREE, PAD, SEALED, Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Confidence(Sampler):
    """Top-k by confidence (MaskGIT, Chang et al. 2022, arXiv:2202.04200; LLaDA's low-confidence remasking).

    At each of ``steps`` steps every free position is predicted, and the k highest-scoring positions are written. With
    ``block`` > 0 only positions of the leftmost unfinished block of that size are chosen (semi-autoregressive), and the
    steps are distributed evenly over the blocks.

    ``order``: confidence p(x) of the sampled token, peak p(1st) of the likeliest, margin p(1st) - p(2nd), entropy
    (lowest first), random, or left (leftmost first).

    ``schedule``: linear, k = ceil(free / remaining steps), or cosine (MaskGIT): after step s of T,
    floor(n cos(pi s / 2T)) of n positions remain, so that early steps write few. Each step writes at least one.

    ``position_temperature`` > 0 samples the positions in proportion to exp(score / temperature), where the score is p
    for confidence and peak (Dream's ``alg_temp``).
    """

    steps: int = setting(16, "Number of denoising steps.", least=1, most=MAX_STEPS)
    order: str = "confidence"
    block: int = block_option()
    schedule: str = setting("linear", "How many positions each step writes.", choices=("linear", "cosine"))
    position_temperature: float = setting(
        0.0, "Temperature of the choice of positions; 0 takes the best.", least=0, most=100
    )

    tries = {"order": ("confidence", "margin", "entropy"), "schedule": ("linear", "cosine")}

    @property
    def order_by(self) -> Literal["noise", "distribution", "samples"]:
        if self.order in ranking.BY_SAMPLE:
            return "samples"
        return "noise" if self.order == "random" or self.position_temperature > 0 else "distribution"

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)
        ranking.check(self.order)
        common.check_steps(self.steps, canvas, spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        return None, common.write(requests[0], outputs[0], self.chosen(canvas, requests[0], outputs[0]))

    def chosen(self, canvas: Canvas, request: Request, out: Output) -> Tensor:
        """[R, W] bool: positions to write at this step."""
        scores = ranking.scores(self.order, canvas, request, out)
        scores = ranking.with_gumbel_noise(scores, self.order, self.position_temperature, canvas, request)
        return common.best(scores, self.count(canvas, request))

    def count(self, canvas: Canvas, request: Request) -> Tensor:
        """[R] number of positions to write at this step."""
        free, step = (request.targets >= 0).sum(1), canvas.step[request.rows]
        begin, end, total = self._share(canvas, request)
        if self.schedule == "linear":
            return -(-free // (end - step).clamp(min=1))
        progress = ((step + 1 - begin) / (end - begin).clamp(min=1)).clamp(max=1).double()
        keep = (total * torch.cos(progress * math.pi / 2)).floor().long()
        return (free - keep).clamp(min=1)

    def _share(self, canvas: Canvas, request: Request) -> tuple[Tensor, Tensor, Tensor]:
        """[R] each: the first step of the active block, one past its last, and its total number of generated positions,
        those already written included."""
        rows, status = request.rows, canvas.status[request.rows]
        generated = (status == FREE) | (status == DRAFT) | (status == SEALED)
        zero, steps = torch.zeros_like(rows), torch.full_like(rows, self.steps)
        if self.block == 0:
            return zero, steps, generated.sum(1)
        first, columns = canvas.prompt[rows], torch.arange(status.shape[1])
        end = ((status != PAD).long() * columns).amax(1) + 1
        blocks = (end - first + self.block - 1).div(self.block, rounding_mode="floor").clamp(min=1)
        current = (request.targets.clamp(min=0).amax(1) - first).div(self.block, rounding_mode="floor")
        inside = (columns - first[:, None]).div(self.block, rounding_mode="floor") == current[:, None]
        # Block b of n ends with step floor((b + 1) * steps / n).
        begin, end = (index * self.steps // blocks for index in (current, current + 1))
        return begin, end, (generated & inside).sum(1)
