"""Sandwich: rewards, where a text that gets unlikelier has an upper bound of its likelihood lowered."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from redraft.objectives.base import ScorePass
from redraft.options import setting
from redraft.posttraining.base import WeightedBatch
from redraft.posttraining.estimators.base import Estimator
from redraft.posttraining.reward import Reward, RewardLoss


@dataclass(frozen=True, kw_only=True)
class Sandwich(Reward):
    """Sandwiched policy gradient (SPG, arXiv:2510.09541). A text with an advantage A >= 0 has its lower bound raised,
    as in ``Reward``. Lowering a lower bound need not lower the likelihood; so a text with A < 0 has the mixture

        (1 - mixture) ELBO + mixture U,    U = 1/beta sum_i log E[w 1(i masked) p(y_i | masked text)^beta]

    lowered, where w are the weights of the ELBO. For beta of at least the number of tokens and up to a constant, U is
    an upper bound of log p (generalised Hoelder inequality); smaller ones serve as a score. The expectation is the mean
    over the draws of the estimator: with few of them, log E is too low.
    """

    beta: float = setting(1.5, "Exponent of the upper bound; 1 to 2 in the paper.", least=1)
    mixture: float = setting(0.5, "Share of the upper bound for texts that get unlikelier.", least=0, most=1)
    kl: float = setting(0.0, "Weight of the divergence from the starting checkpoint; 0: it is not needed.", least=0)

    estimators: ClassVar[tuple[str, ...]] = ("levels", "blocks")

    def objective(self, estimator: Estimator) -> RewardLoss:
        return SandwichLoss(estimator, self.group, self.kl, self.beta, self.mixture)


@dataclass(frozen=True)
class SandwichLoss(RewardLoss):
    """The loss of ``Sandwich``."""

    beta: float
    mixture: float

    def shares(self, prepared: WeightedBatch, factors: Tensor) -> Generator[ScorePass, Tensor, WeightedBatch]:
        """As ``RewardLoss.shares``: targets of texts that get unlikelier count by the gradient of the mixture.

        Args:
            factors: [B].
        """
        count = len(prepared.target)
        alone = replace(
            prepared, row=torch.arange(count), rows=count, bound=torch.ones(count)
        )  # the nats of every target
        nats = yield ScorePass(alone)
        positions = torch.cat([targets[targets >= 0] for targets in prepared.request.target_lists])
        is_token = torch.ones(count, dtype=torch.bool) if prepared.is_length is None else ~prepared.is_length
        _, share = upper_bound(-nats, prepared.bound.double(), prepared.row, positions, self.beta)
        mixed = (1 - self.mixture) * prepared.bound + self.mixture * share.to(prepared.bound)
        lowered = (factors < 0)[prepared.row] & is_token
        return replace(prepared, bound=torch.where(lowered, mixed, prepared.bound))


def upper_bound(log_p: Tensor, weight: Tensor, row: Tensor, position: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """U of each row, and its derivative by the log-probability of each target.

    Args:
        log_p, weight, row, position: [N] of each target: its log-probability, its weight in the ELBO (the share of its
            draw included), its row, and its position in the row. A position is a target in several draws.
    Returns:
        [max row + 1] float64, [N] float64.
    """
    length = int(position.max()) + 1
    place = row * length + position
    rows = int(row.max()) + 1
    value = weight.double() * (beta * log_p.double()).exp()
    total = torch.zeros(rows * length, dtype=torch.float64).index_add_(0, place, value)
    logs = torch.where(total > 0, total, 1.0).log() / beta  # a position that is never masked has no term
    return logs.view(rows, length).sum(1), value / total[place].clamp(min=torch.finfo(torch.float64).tiny)
