"""The first stage of latent diffusion: text -> vectors -> text, with noise on the vectors."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.noise import gaussian
from redraft.objectives import _vectors as vectors
from redraft.objectives._cross_entropy import cross_entropy, per_row
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec, Vectors


@dataclass(frozen=True)
class Autoencoder:
    """Cross-entropy of all target tokens, given their vectors at a log-SNR uniform between ``noise`` and the cleanest.

    Noise makes the vectors of different texts keep their distance, and teaches the decoder what a sampler will give it:
    vectors that are nearly right.
    """

    noise: float = 2.0

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw noise for the vectors of ``batch``; what they are without it, the network says (``ahead``)."""
        what = spec.continuous
        assert what is not None
        start, count = vectors.starts(batch), vectors.counts(batch, what)
        column = torch.arange(max(1, int((start + count).max())))
        noisy = (column >= start[:, None]) & (column < (start + count)[:, None])
        most, shape = gaussian.ends(what)[0], (int(count.sum()),)
        log_snr = self.noise + (most - self.noise) * torch.rand(shape, generator=generator)
        row, at = batch.target.nonzero(as_tuple=True)
        return vectors.Noised(
            ask=Forward(
                x=torch.full(noisy.shape, spec.mask_id),
                pos=torch.where(column < (start + count)[:, None], column, -1),
                want=torch.where(batch.target, torch.arange(batch.ids.shape[1]), -1),
                attend=spec.attend,
                prompt=start,
                vectors=Vectors("decode", noisy=noisy),
            ),
            target=batch.ids[row, at],
            weight=torch.ones(len(row)),
            row=row,
            rows=len(batch.ids),
            tokens=len(row),
            extra={
                "log_snr": log_snr,
                "noise": vectors.normal((*shape, what.width), generator, batch.ids.device),
                "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id})),
            },
            continuous=what,
        )

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """The vectors, which learn too, and then the batch with their noise (see ``types.Objective``)."""
        prepared = self.prepare(batch, spec, generator)
        return vectors.noised(prepared, (yield replace(vectors.encoding(batch, spec), learns=True)))

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        nll, train = cross_entropy(logits, prepared.target, prepared.extra["forbidden"])
        nats = per_row(nll, prepared.row, prepared.rows)
        return LossTerms(train.sum() / max(prepared.tokens, 1), nats, prepared.tokens, False)
