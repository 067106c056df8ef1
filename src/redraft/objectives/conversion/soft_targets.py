"""Soft targets: learn the autoregressive model's distribution of every token, beside the token itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

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
from redraft.runtime import upload
from redraft.types import Batch, LossTerms, Prepared, Spec


@dataclass(frozen=True, kw_only=True)
class SoftTargets(ConversionMethod):
    """Word-level distillation (Kim & Rush 2016, arXiv:1606.07947) from the autoregressive model, at the masked tokens:

        loss = (1 - share) loss of the family + share KL(p(. | x_<i) || q_i(. | x_t))

    with the weights of the family's loss. p reads the clean text left to right, q the noisy text. What q sees behind i
    is not in p: at ``share`` 1 a perfect student ignores it. Lengths, and the padding of a last block, keep the
    family's loss. It costs a forward pass of the teacher.
    """

    share: float = setting(0.5, "Share of the divergence in the loss; 0 is the plain loss.", least=0, most=1)
    top: int = setting(
        0, "Likeliest tokens of the teacher that are compared, not renormalised; 0 is all: more memory.", least=0
    )

    rank = 1

    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        self.check_inner(inner)
        return Soft(inner, origin, self.share, self.top) if self.share else inner


@dataclass(kw_only=True)
class SoftBatch(ConvertedBatch):
    """A batch with distributions of the teacher."""

    log_p: Tensor  # [N, K] log-probabilities of the teacher
    ids: Tensor | None  # [N, K] their ids; None: K = V, in the order of the vocabulary
    known: Tensor  # [N] 1.0 where the teacher has a distribution, else 0.0


@dataclass(frozen=True)
class Soft(Converted):
    """The loss of ``SoftTargets``."""

    share: float
    top: int

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[Prepared]:
        inner = yield from self.inner.rollout(batch, spec, generator)
        reduce = partial(log_probabilities, forbidden=inner.forbidden, top=self.top)
        found, known = yield from ask_teacher(batch, inner, self.origin, spec, reduce)
        log_p, ids = (found, None) if found.ndim == 2 else (found[:, 0].float(), found[:, 1].long())
        return SoftBatch(**shared_fields(inner), inner=inner, log_p=log_p, ids=ids, known=known.float())

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """Both losses, and the nats of the inner one. ``logits`` are [N, V]."""
        if not isinstance(prepared, SoftBatch):
            return self.inner.loss(logits, prepared)
        inner, share = prepared.inner, self.share * prepared.known
        apart = divergence(logits, prepared.log_p, prepared.ids, prepared.forbidden)
        terms = self.inner.loss(logits.clone(), replace(inner, weight=inner.weight * (1 - share)))
        return replace(terms, loss=terms.loss + (apart * inner.weight * share).sum() / max(inner.tokens, 1))


def log_probabilities(logits: Tensor, forbidden: Tensor, top: int) -> Tensor:
    """Log-probabilities [n, V] of logits [n, V], where ``forbidden`` [F] ids have probability 0.

    With ``top`` = k below V: those of the k likeliest tokens and their ids, [n, 2, k] float64.
    """
    log_p = logits.float().index_fill(1, upload(forbidden, logits.device), -torch.inf).log_softmax(-1)
    if not 0 < top < log_p.shape[1]:
        return log_p
    best, ids = log_p.topk(top, -1)
    return torch.stack([best.double(), ids.double()], 1)


def divergence(logits: Tensor, log_p: Tensor, ids: Tensor | None, forbidden: Tensor) -> Tensor:
    """sum_v p(v) (log p(v) - log q(v)) [N], where q is the softmax of logits [N, V] without ``forbidden`` [F] ids.

    With z the logits and Z the sum of their exponentials it is sum p log p - sum p z + (sum p) log Z, so that the
    backward pass keeps no more than p and z.

    Args:
        log_p: [N, K] log-probabilities of p. ids: [N, K] the tokens of the sum; None: all. A part of the tokens is not
            renormalised, so that the sum can be negative.
    """
    z = logits.float()
    total = z.index_fill(1, forbidden, -torch.inf).logsumexp(1)
    p = log_p.exp()
    negative_entropy = torch.special.xlogy(p, p).sum(1)
    return negative_entropy - (p * (z if ids is None else z.gather(1, ids))).sum(1) + p.sum(1) * total
