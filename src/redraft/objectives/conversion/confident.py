"""Confident: tokens that the model predicts well have more weight, as samplers write those first."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.objectives.base import Objective
from redraft.objectives.conversion.base import ConversionMethod, Converted, Origin
from redraft.options import setting
from redraft.types import LossTerms, Prepared


@dataclass(frozen=True, kw_only=True)
class Confident(ConversionMethod):
    """The path term of planner-aware training, as in the code of REPR-ALIGN (arXiv:2605.06885):

        loss = sum_i w_i (1 + amount stopgrad q_i(x_i | x_t)) CE_i

    with the weights w_i of the family's loss, and q_i the model's own probability of the true token. The family's loss
    weighs all sets of masks alike; samplers that write the most confident positions first visit few of them. The
    teacher is not needed.
    """

    amount: float = setting(1.0, "Weight of the term; 0 is the plain loss.", least=0)

    rank = 0

    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        self.check_inner(inner)
        return ConfidentLoss(inner, origin, self.amount) if self.amount else inner


@dataclass(frozen=True)
class ConfidentLoss(Converted):
    """The loss of ``Confident``."""

    amount: float

    needs_teacher = False

    @property
    def needs_rollout(self) -> bool:  # type: ignore[override] # of this instance
        """As the inner objective."""
        return self.inner.needs_rollout

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The inner loss with other weights. The logits [N, V] are overwritten."""
        with torch.no_grad():
            allowed = logits.float().index_fill(1, prepared.forbidden, -torch.inf)
            own = (logits.gather(1, prepared.target[:, None])[:, 0] - allowed.logsumexp(1)).exp()
            own = torch.where(own <= 1, own, 0.0)  # a length may be an id that is no token
        return self.inner.loss(logits, replace(prepared, weight=prepared.weight * (1 + self.amount * own)))
