"""Context: masked tokens near visible ones have more weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.objectives.base import Objective, Rollout
from redraft.objectives.conversion.base import ConversionMethod, Converted, Origin
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.options import setting
from redraft.types import Batch, LossTerms, Prepared, Spec


@dataclass(frozen=True, kw_only=True)
class Context(ConversionMethod):
    """Context-adaptive rescheduling of noise, token by token (CART; Dream, Ye et al. 2025, arXiv:2508.15487):

        w_n = sum over visible i of 1/2 p (1 - p)^(|n - i| - 1)

    is the weight of the masked token n in place of the family's, scaled so that the weights of a batch sum to its
    number of target tokens. A token with visible text on both sides far and wide has weight 1 before scaling, one
    without any has 0: the first step of sampling is not trained by it, so that some rows keep the plain weights. The
    loss is no bound. The teacher is not needed.
    """

    p: float = setting(0.3, "Weight of the neighbours: 1 looks at the next positions only.", above=0, most=1)
    plain: float = setting(0.1, "Share of rows that keep the family's weights.", least=0, most=1)

    rank = 0

    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        self.check_inner(inner, (Masked,))
        return Contextual(inner, origin, self.p, self.plain)


@dataclass(frozen=True)
class Contextual(Converted):
    """The loss of ``Context``."""

    p: float
    plain: float

    needs_teacher = False

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[Prepared]:
        inner = yield from self.inner.rollout(batch, spec, generator)
        assert isinstance(inner, MaskedBatch)
        request = inner.request
        is_token = ~inner.is_length if inner.is_length is not None else torch.ones_like(inner.row, dtype=torch.bool)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)  # request rows: twice those of complementary masks
        hidden = torch.zeros_like(request.targets, dtype=torch.bool)
        hidden[row[is_token], column[is_token]] = True
        weight = context_weights(hidden, (request.positions >= 0) & ~hidden, self.p)
        kept = torch.rand(len(hidden), generator=generator) < self.plain
        own = torch.where(kept[:, None], 1.0, weight)[row, column] * is_token
        scale = inner.weight[is_token].sum() / own.sum().clamp(min=1e-9)
        return replace(inner, weight=torch.where(is_token, own * scale, inner.weight).to(inner.weight))

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """That of the inner objective. The logits [N, V] are overwritten."""
        return replace(self.inner.loss(logits, prepared), is_bound=False)


def context_weights(hidden: Tensor, visible: Tensor, p: float) -> Tensor:
    """w_n of ``Context`` where ``hidden`` [R, L], else 0: [R, L] bool, [R, L] bool -> [R, L] float32."""
    at = torch.arange(hidden.shape[1], device=hidden.device)
    distance = (at[:, None] - at).abs()
    near = torch.where(distance > 0, 0.5 * p * (1 - p) ** (distance - 1).clamp(min=0).float(), 0.0)
    return (visible.float() @ near) * hidden
