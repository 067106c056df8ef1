"""Entropy bound: write as many positions at once as a bound on their dependence, in nats, allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from redraft.limits import MAX_SCALE
from redraft.options import setting
from redraft.samplers.base import Sampler, block_option
from redraft.samplers.shared import common, ranking
from redraft.types import Canvas, Output, Request, Spec, Step


@dataclass(frozen=True)
class EntropyBound(Sampler):
    """The EB-sampler (Ben-Hamu et al. 2025, arXiv:2505.24857).

    Positions are sorted by ``order`` (see ``Confidence``), and the first k are written, with the largest k such that

        sum_{j <= k} H_j - max_{j <= k} H_j <= gamma,   H_j the entropy of position j's prediction in nats

    which bounds the Kullback-Leibler divergence between sampling them independently and jointly. The first is always
    written. ``block`` as in ``Confidence``.
    """

    gamma: float = setting(
        0.1, "Bound on the joint dependence of the tokens of a pass, in nats.", least=0, most=MAX_SCALE
    )
    order: str = "entropy"
    block: int = block_option()

    tries = {"gamma": (0.1, 0.5, 2.0, 4.0)}

    @property
    def order_by(self) -> Literal["noise", "distribution", "samples"]:
        if self.order in ranking.BY_SAMPLE:
            return "samples"
        return "noise" if self.order == "random" else "distribution"

    def start(self, canvas: Canvas, spec: Spec) -> None:
        common.check_diffusion(spec)
        ranking.check(self.order)

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Request]:
        return common.requests_for(canvas, spec, common.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[None, Step]:
        request, out = requests[0], outputs[0]
        scores = ranking.scores(self.order, canvas, request, out)
        entropy = common.rectangle(ranking.entropy(out), request, torch.inf).double()
        sorted_ = entropy.gather(1, scores.sort(dim=1, descending=True, stable=True).indices)
        dependence = sorted_.cumsum(1) - sorted_.cummax(1).values  # increases; not a number where there is no target
        return None, common.write(request, out, common.best(scores, (dependence <= self.gamma).sum(1).clamp(min=1)))
