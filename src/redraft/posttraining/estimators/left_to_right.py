"""LeftToRight: the exact likelihood of a masked model that generates from left to right."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from redraft.objectives.masked import Masked, MaskedBatch
from redraft.objectives.shared.noise import noisable
from redraft.posttraining.shared.copies import OfMasks, take, together
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class LeftToRight(OfMasks):
    """JustGRPO (arXiv:2601.15165): -log p(y) = sum_k -log p(y_k | x, y_<k, everything from k on hidden).

    Exact for texts that are generated from left to right, as ``likelihood.sampler_likelihood`` in this order. It takes
    one row for each token of the text.
    """

    exact = True

    def rows(self, tokens: int) -> int:
        """One for each token."""
        return max(tokens, 1)

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        can = noisable(batch, spec)
        copies = can.sum(1).clamp(min=1)
        source = torch.arange(len(can), device=can.device).repeat_interleave(copies)
        place = torch.arange(len(source), device=can.device) - (copies.cumsum(0) - copies)[source]
        many, can, number = take(batch, source), can[source], (can.cumsum(1) - 1)[source]
        now, open_ = can & (number == place[:, None]), can & (number >= place[:, None])
        # A length is requested in every copy of its row; so are shares of its nats.
        prepared = Masked().request(many, spec, now, copies[source], torch.ones(len(source), device=can.device))
        tokens = many.ids.masked_fill(open_, spec.tokens.mask_id)
        prepared = replace(prepared, request=replace(prepared.request, tokens=tokens))
        return together(prepared, source, len(batch.ids), 1 / copies[source])
