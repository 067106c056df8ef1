"""The objective of the text autoencoder of latent diffusion: reconstruct tokens from noisy vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.noise import gaussian
from redraft.objectives.base import Objective, Rollout, RolloutPass
from redraft.objectives.shared import vectors as vectors
from redraft.objectives.shared.cross_entropy import cross_entropy, per_row
from redraft.objectives.shared.noise import forbidden_ids
from redraft.objectives.shared.vectors import VectorBatch
from redraft.types import Batch, Forward, LossTerms, Spec, VectorQuery


@dataclass(frozen=True)
class Autoencoder(Objective[VectorBatch]):
    """Cross-entropy of all target tokens given their vectors, at a log-SNR uniform between ``noise`` and the cleanest.

    Noise keeps the vectors of different sequences apart and trains the decoder on the approximate vectors that a
    sampler produces.
    """

    noise: float = 2.0

    needs_rollout = True

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> VectorBatch:
        """Draw noise for the vectors of a batch [B, L]; ``rollout`` adds it to the encoder's vectors."""
        continuous = spec.family.continuous
        assert continuous is not None
        start, count = vectors.target_starts(batch), vectors.vector_counts(batch, continuous)
        column = torch.arange(max(1, int((start + count).max())))
        noisy = (column >= start[:, None]) & (column < (start + count)[:, None])
        cleanest, shape = gaussian.ends(continuous)[0], (int(count.sum()),)
        log_snr = self.noise + (cleanest - self.noise) * torch.rand(shape, generator=generator)
        row, at = batch.target.nonzero(as_tuple=True)
        return VectorBatch(
            request=Forward(
                tokens=torch.full(noisy.shape, spec.tokens.mask_id),
                positions=torch.where(column < (start + count)[:, None], column, -1),
                targets=torch.where(batch.target, torch.arange(batch.ids.shape[1]), -1),
                attention=spec.network.attention,
                prompt=start,
                extra=(VectorQuery("decode", noisy=noisy),),
            ),
            target=batch.ids[row, at],
            weight=torch.ones(len(row)),
            row=row,
            rows=len(batch.ids),
            tokens=len(row),
            forbidden=forbidden_ids(spec),
            continuous=continuous,
            log_snr=log_snr,
            noise=vectors.normal((*shape, continuous.width), generator, batch.ids.device),
        )

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[VectorBatch]:
        """Encode the vectors with gradient, and add noise."""
        prepared = self.prepare(batch, spec, generator)
        return vectors.add_noise(prepared, (yield RolloutPass(vectors.encoding(batch, spec), with_gradient=True)))

    def loss(self, logits: Tensor, prepared: VectorBatch) -> LossTerms:
        nll, train = cross_entropy(logits, prepared.target, prepared.forbidden)
        nats = per_row(nll, prepared.row, prepared.rows)
        return LossTerms(train.sum() / max(prepared.tokens, 1), nats, prepared.tokens, False)
