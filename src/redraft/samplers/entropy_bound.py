"""Entropy bound: write as many positions at once as can depend on each other by at most so many nats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from redraft.errors import UserError
from redraft.samplers import _open, _scores
from redraft.types import Canvas, Forward, Output, Spec, Step


@dataclass(frozen=True)
class EntropyBound:
    """The EB-sampler (Ben-Hamu et al. 2025, arXiv:2505.24857).

    Positions come in ``order`` (that of ``Confidence``), and the k first are written, k being the largest with

        sum_{j <= k} H_j - max_{j <= k} H_j <= gamma,   H_j the entropy of position j's prediction in nats

    which bounds the Kullback-Leibler divergence between drawing them independently and jointly. The first is written
    in any case. ``block`` as in ``Confidence``.
    """

    gamma: float = 0.1
    order: str = "entropy"
    block: int = 0

    exact = False
    retracts = False
    width = 1
    tries = {"gamma": (0.1, 0.5, 2.0, 4.0)}

    @property
    def positions(self) -> Literal["noise", "distribution", "draw"]:
        """What decides where is written (see ``likelihood.under``)."""
        if self.order in _scores.BY_DRAW:
            return "draw"
        return "noise" if self.order == "random" else "distribution"

    def start(self, canvas: Canvas, spec: Spec) -> None:
        _open.check_diffusion(spec)
        _open.check_block(self.block)
        _scores.check(self.order)
        if not self.gamma >= 0:
            raise UserError(f"gamma = {self.gamma} must be at least 0.")

    def plan(self, canvas: Canvas, state: None, spec: Spec) -> list[Forward]:
        return _open.ask_for(canvas, spec, _open.free_in_block(canvas, self.block, spec), self.block)

    def apply(
        self, canvas: Canvas, state: None, spec: Spec, asks: list[Forward], outs: list[Output]
    ) -> tuple[None, Step]:
        ask, out = asks[0], outs[0]
        scores = _scores.scores(self.order, canvas, ask, out)
        entropy = _open.rectangle(_scores.entropy(out).double(), ask, torch.inf)
        sorted_ = entropy.gather(1, scores.sort(dim=1, descending=True, stable=True).indices)
        dependence = sorted_.cumsum(1) - sorted_.cummax(1).values  # grows; not a number where nothing was wanted
        return None, _open.write(ask, out, _open.best(scores, (dependence <= self.gamma).sum(1).clamp(min=1)))
