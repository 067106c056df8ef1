"""Factor: the more confident the predictions, the more positions are written at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.limits import MAX_SCALE
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class Factor(Sampler):
    """Factor-based parallel decoding (Fast-dLLM, Wu et al. 2025, arXiv:2505.22618).

    With the confidences sorted, c_(1) >= c_(2) >= ..., the first n are written, with the largest n such that

        (n + 1) (1 - c_(n)) < factor

    and always at least one. ``Threshold`` requires the same confidence for two positions as for fifty. Here fifty
    require more, because the error of sampling n positions independently is bounded by n (1 - c_(n)).
    ``block`` as in ``Confidence``.
    """

    factor: float = setting(1.0, "Bound on (n + 1) (1 - p) for n tokens of a pass.", above=0, most=MAX_SCALE)
    block: int = block_option()

    tries = {"factor": (0.5, 1.0, 2.0, 4.0)}

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        doubt = -torch.expm1(out.conf.double().sort(dim=1, descending=True).values)  # 1 - c; 1 where there is no target
        n = torch.arange(1, doubt.shape[1] + 1)
        # The left side increases with n, so the positions that satisfy it are a prefix.
        satisfied = ((n + 1) * doubt < self.factor) & (n <= (request.targets >= 0).sum(1, keepdim=True))
        return None, common.write(request, out, common.best(out.conf, satisfied.sum(1).clamp(min=1)))
