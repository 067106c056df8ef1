"""Align: hidden states stay close to those of the autoregressive model, which reads the clean text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.errors import UserError
from redraft.objectives.base import Objective, Rollout
from redraft.objectives.conversion.base import (
    ConversionMethod,
    Converted,
    ConvertedBatch,
    Origin,
    ask_teacher,
    shared_fields,
)
from redraft.options import setting
from redraft.types import Batch, LossTerms, Prepared, Spec, StateQuery


@dataclass(frozen=True, kw_only=True)
class Align(ConversionMethod):
    """Representation alignment (REPR-ALIGN, arXiv:2605.06885):

        loss = loss of the family + weight A,   A = 1 - mean cos(h_l(i), stopgrad g_l(i))

    over the masked tokens i and the layers l, where h_l(i) is the hidden state of the model that predicts token i from
    the noisy text, and g_l(i) that of the teacher, which reads the clean text causally. l runs over the input of the
    first block, the outputs of the others and the output of the last norm. It costs a forward pass of the teacher
    without logits, and (layers + 1) D numbers for each masked token, twice.
    """

    weight: float = setting(10.0, "Weight of the misalignment; 0 is the plain loss.", least=0)
    layers: int = setting(0, "Layers that an update compares, drawn anew for each; 0 compares all of them.", least=0)

    rank = 2

    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        """As ``ConversionMethod.wrap``.

        Raises:
            UserError: the network does not answer with its hidden states.
        """
        self.check_inner(inner)
        if not origin.answers_states:
            raise UserError(
                "[objective] align can't read the hidden states of this network.", "Use a model of decoder blocks."
            )
        return Aligned(inner, origin, self.weight, self.layers) if self.weight else inner


@dataclass(kw_only=True)
class AlignedBatch(ConvertedBatch):
    """A batch with the hidden states of the teacher."""

    states: Tensor  # [N, k D]
    share: Tensor  # [N] weight of each target in the mean


@dataclass(frozen=True)
class Aligned(Converted):
    """The loss of ``Align``."""

    weight: float
    layers: int

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[Prepared]:
        inner = yield from self.inner.rollout(batch, spec, generator)
        depths = self._depths(generator)
        states, known = yield from ask_teacher(batch, inner, self.origin, spec, states=StateQuery(depths, only=True))
        share = known.float() * (inner.tokens / known.sum().clamp(min=1))
        shared = {**shared_fields(inner), "request": inner.request.with_extra(StateQuery(depths))}
        return AlignedBatch(**shared, inner=inner, states=states, share=share)

    def _depths(self, generator: torch.Generator) -> tuple[float, ...]:
        """The layers that this update compares, as ``StateQuery.depths``."""
        every, count = self.origin.layers + 1, self.layers or self.origin.layers + 1
        chosen = torch.randperm(every, generator=generator)[:count].sort().values if count < every else range(every)
        return tuple(int(layer) / self.origin.layers for layer in chosen)

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The inner loss and the weighted misalignment. ``logits`` [N, V + k D] has the hidden states on the right."""
        if not isinstance(prepared, AlignedBatch):
            return self.inner.loss(logits, prepared)
        wide, depths = prepared.states.shape[1], prepared.request.find(StateQuery)
        assert depths is not None
        own, count = logits[:, logits.shape[1] - wide :], len(depths.depths)
        terms = self.inner.loss(logits[:, : logits.shape[1] - wide].contiguous(), prepared.inner)
        apart = misalignment(own.float().unflatten(1, (count, -1)), prepared.states.float().unflatten(1, (count, -1)))
        return replace(terms, loss=terms.loss + self.weight * (apart * prepared.share).sum() / max(prepared.tokens, 1))


def misalignment(own: Tensor, teacher: Tensor) -> Tensor:
    """1 - cos, the mean over k layers: [N, k, D], [N, k, D] -> [N]. It is exactly 0 for equal states.

    Computed as half the squared distance of the unit vectors, which is the same number.
    """
    return (F.normalize(own, dim=-1) - F.normalize(teacher.detach(), dim=-1)).square().sum(-1).mean(-1) / 2
