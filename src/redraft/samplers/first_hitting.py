"""First-hitting: one uniformly random free position per pass; samples exactly from the masked diffusion model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.runtime import keyed_uniform
from redraft.samplers.base import Sampler
from redraft.samplers.shared import common
from redraft.types import FREE, Canvas, NoiseStream, Output, Request, Spec, Step


@dataclass(frozen=True)
class FirstHitting(Sampler):
    """Zheng et al. 2024 (arXiv:2409.02908): n passes for n tokens, and no error from discretised time.

    In continuous time, tokens are revealed one at a time in a uniformly random order that does not depend on their
    values. So only the revealed position needs a prediction.
    """

    exact = True
    order_by = "noise"

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        free = canvas.status == FREE
        positions = torch.arange(free.shape[1]).expand(free.shape)
        uniform = keyed_uniform(canvas.seed, canvas.step + NoiseStream.ORDER, positions)
        chosen = common.best(uniform.masked_fill(~free, -torch.inf), torch.ones_like(canvas.step))
        return common.requests_for(canvas, spec, chosen)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        return None, common.write(requests[0], outputs[0], requests[0].targets >= 0)
