"""Self-conditioning: a masked model learns to use its previous prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from redraft.objectives.base import Objective, Rollout, RolloutPass
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.runtime import upload, widest
from redraft.types import Batch, Forward, LossTerms, SelfConditioning, Spec


@dataclass(frozen=True)
class SelfConditioned(Objective[MaskedBatch]):
    """``inner`` with self-conditioning: the network reads its previous prediction (Chen et al. 2022, arXiv:2208.04202).

    In training, a first forward pass without gradient or dropout runs for a ``share`` of the rows, and its predictions
    at the masked positions are an input of the second pass. The other rows have no previous prediction, as in the
    first step of sampling. For scoring, all rows take two passes, x_t -> previous -> p(x | x_t, previous). As the
    previous prediction is a function of x_t, the bound remains valid.
    """

    inner: Masked
    share: float
    count: int  # most likely tokens that the network reads per position

    additive = True
    needs_rollout = True

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        """The batch of ``inner``, without previous predictions."""
        return self.inner.prepare(batch, spec, generator)

    def scoring(self) -> SelfConditioned:
        """The same objective with self-conditioning of all rows."""
        return replace(self, share=1.0)

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[MaskedBatch]:
        prepared = self.prepare(batch, spec, generator)
        rows = torch.arange(len(prepared.request.tokens), device=prepared.request.tokens.device)
        if self.share < 1:
            rows = rows[
                torch.rand(len(rows), generator=generator, device=generator.device).to(rows.device) < self.share
            ]
        if not len(rows):
            return prepared
        request = _select_rows(_without_lengths(prepared), rows)
        reduce = partial(self._likeliest, forbidden=prepared.forbidden)
        previous = self._previous((yield RolloutPass(request, reduce=reduce)), prepared, request, rows)
        return replace(prepared, request=prepared.request.with_extra(previous))

    def _likeliest(self, logits: Tensor, forbidden: Tensor) -> Tensor:
        """The likeliest tokens by logits [n, V], and their probabilities -> [n, 2, K] float64."""
        log_p = logits.detach().float().index_fill(1, upload(forbidden, logits.device), -torch.inf).log_softmax(-1)
        return torch.stack(
            [part.to(widest(logits.device)) for part in SelfConditioning.likeliest(log_p, self.count)], 1
        )

    def _previous(self, answer: Tensor, prepared: MaskedBatch, request: Forward, rows: Tensor) -> SelfConditioning:
        """The previous predictions of a batch, from the ``answer`` [N, 2, K] for its ``rows`` [R]; others are empty."""
        token, weight = answer.cpu().unbind(1)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        previous = SelfConditioning.blank(prepared.request.tokens, token.shape[1])
        at = rows[row], request.targets[row, column]
        previous.token[at], previous.weight[at] = token.to(previous.token), weight.to(previous.weight)
        return previous

    def loss(self, logits: Tensor, prepared: MaskedBatch) -> LossTerms:
        """The loss to minimise and the bound of each row in nats. The logits [N, V] are overwritten."""
        return self.inner.loss(logits, prepared)


def _without_lengths(prepared: MaskedBatch) -> Forward:
    """The request for the masked tokens, without lengths."""
    request, is_length = prepared.request, prepared.is_length
    if is_length is None:
        return request
    token = request.targets >= 0
    token[token.clone()] = ~is_length.to(token.device)
    return replace(request, targets=torch.where(token, request.targets, -1))


def _select_rows(request: Forward, rows: Tensor) -> Forward:
    """The rows ``rows`` [n] of a request."""
    prompt, time = (None if part is None else part[rows] for part in (request.prompt, request.time))
    return replace(
        request,
        tokens=request.tokens[rows],
        positions=request.positions[rows],
        targets=request.targets[rows],
        prompt=prompt,
        time=time,
    )
