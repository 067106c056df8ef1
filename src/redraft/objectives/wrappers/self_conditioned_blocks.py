"""Self-conditioning of blocks: the network learns to use its previous prediction of a block, as a mean embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from redraft.models.parts.self_conditioning import ExpectedEmbedding
from redraft.objectives.base import Objective, Rollout, RolloutPass
from redraft.objectives.hybrid import Hybrid, HybridBatch
from redraft.runtime import upload
from redraft.types import Batch, CleanStream, DraftQuery, Forward, LossTerms, Spec


@dataclass(frozen=True)
class SelfConditionedBlocks(Objective[HybridBatch]):
    """``inner`` with self-conditioning over the vocabulary (Chen et al. 2022, arXiv:2208.04202; DiffusionGemma).

    A first forward pass without gradient or dropout runs for a ``share`` of the rows. The mean embedding of its
    predictions p of the noisy blocks, sum_k p_k e_k, is an input of the second pass. The other rows have none, as in
    the first pass over a block in sampling.
    """

    inner: Hybrid
    share: float

    additive = True
    needs_rollout = True

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> HybridBatch:
        """The batch of ``inner``, without previous predictions."""
        return self.inner.prepare(batch, spec, generator)

    def scoring(self) -> Objective[HybridBatch]:
        """That of ``inner``."""
        return self.inner.scoring()  # type: ignore[return-value]

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[HybridBatch]:
        prepared = self.prepare(batch, spec, generator)
        chance = torch.rand(len(batch.ids), generator=generator, device=generator.device).to(batch.ids.device)
        rows = (chance < self.share).nonzero()[:, 0]
        request = _noisy_only(prepared.request, rows)
        if not len(rows) or not bool((request.targets >= 0).any()):
            return prepared
        reduce = partial(_log_p, forbidden=prepared.forbidden)
        mean: Tensor = yield RolloutPass(request, reduce=reduce, expected=True)
        row, column = (request.targets >= 0).nonzero(as_tuple=True)
        at = upload(torch.stack([rows[row], request.targets[row, column]]), mean.device)
        width = int(prepared.request.positions.max()) + 1
        vectors = mean.new_zeros(len(batch.ids), width, mean.shape[1])
        vectors[at[0], at[1]] = mean
        return replace(prepared, request=prepared.request.with_extra(ExpectedEmbedding(vectors)))

    def loss(self, logits: Tensor, prepared: HybridBatch) -> LossTerms:
        """The loss to minimise and the nats of each row. The logits [N, V] are overwritten."""
        return self.inner.loss(logits, prepared)


def _log_p(logits: Tensor, forbidden: Tensor) -> Tensor:
    """Log-probabilities [n, V] without the ``forbidden`` ids."""
    return logits.detach().float().index_fill(1, upload(forbidden, logits.device), -torch.inf).log_softmax(-1)


def _noisy_only(request: Forward, rows: Tensor) -> Forward:
    """The rows ``rows`` [n] of a request, without the targets of the clean stream."""
    clean, draft = request.find(CleanStream), request.find(DraftQuery)
    extra: tuple[CleanStream | DraftQuery, ...] = ()
    if draft is not None:
        extra = (replace(draft, draft_from=None if draft.draft_from is None else draft.draft_from[rows]),)
    if clean is not None:
        extra = (*extra, replace(clean, tokens=clean.tokens[rows], positions=clean.positions[rows], targets=None))
    return replace(
        request,
        tokens=request.tokens[rows],
        positions=request.positions[rows],
        targets=request.targets[rows],
        prompt=None if request.prompt is None else request.prompt[rows],
        extra=extra,
    )
