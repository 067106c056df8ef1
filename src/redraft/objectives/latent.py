"""Latent diffusion: noise on the vectors of a text autoencoder, and the variational bound on the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.noise import gaussian
from redraft.objectives.base import Objective, Rollout, RolloutPass
from redraft.objectives.shared import times as times
from redraft.objectives.shared import vectors as vectors
from redraft.objectives.shared.cross_entropy import cross_entropy, per_row
from redraft.objectives.shared.noise import forbidden_ids
from redraft.objectives.shared.vectors import VectorBatch
from redraft.runtime import upload
from redraft.types import Batch, Forward, LossTerms, Spec, VectorQuery


@dataclass(kw_only=True)
class LatentBatch(VectorBatch):
    """A batch of latent vectors."""

    clean_ids: Tensor  # [T] target tokens of the batch
    ids_row: Tensor  # [T] their batch rows
    vector_index: Tensor  # [K] indices of the targets that are vectors
    length_index: Tensor  # indices of the targets that are lengths
    length: Tensor  # these lengths, in order
    last_noise: Tensor  # [K, Z] noise at the cleanest level
    self_condition: bool  # a first forward pass makes a prediction, which the second one reads
    decoded: Tensor | None = None  # [T] -log p of each token, decoded from its cleanest vectors


@dataclass(frozen=True)
class Latent(Objective[LatentBatch]):
    """v-prediction on the vectors f(x) of a text encoder (LD4LG, Lovelace et al. 2022, arXiv:2212.09462).

    The bound is that of variational diffusion models (Kingma et al. 2021, arXiv:2107.00630) on f(x):

        -log p(x) <= KL(q(z_noisiest | x) || N(0, 1)) + E[-log p(x | z_cleanest)]
                     + 1/2 E_g [ (g_first - g_last) e^g |f(x) - f_hat(z_g)|^2 ],   g uniform between the ends

    with p(x | z) given by the decoder. The number of vectors follows from the length, which is treated as in
    ``Masked``.

    Fields:
        weight: what is minimised. ``uniform``: |v - v_hat|^2 / Z per vector, at the noise levels of the schedule
            (Salimans & Ho 2022, arXiv:2202.00512). ``bound``: the bound, per token; only then are the reported nats a
            bound.
        self_condition: share of batches with self-conditioning on a first prediction (arXiv:2208.04202).
        length_weight: weight of the length head's cross-entropy (mean over rows) in the loss.
    """

    weight: Literal["uniform", "bound"] = "bound"
    self_condition: float = 0.0
    length_weight: float = 0.1

    needs_rollout = True

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> LatentBatch:
        """Draw noise for the vectors of a batch [B, L]; ``rollout`` adds it to the encoder's vectors."""
        continuous = spec.family.continuous
        assert continuous is not None
        rows = len(batch.ids)
        t = times.continuous(rows, generator)
        log_snr = vectors.log_snrs(spec, t, even=self.weight == "bound")
        start, count = vectors.target_starts(batch), vectors.vector_counts(batch, continuous)
        width = max(1, int((start + count).max()))
        column = torch.arange(width)
        noisy = (column >= start[:, None]) & (column < (start + count)[:, None])
        is_target = noisy.clone()
        with_length = spec.network.length_head and batch.prompt is not None
        if with_length:
            is_target[torch.arange(rows), start - 1] = True
        row, at = is_target.nonzero(as_tuple=True)
        is_length = ~noisy[row, at]
        self_condition = torch.rand((), generator=generator).item() < self.self_condition
        tokens = batch.target.sum(1)
        padded = torch.nn.functional.pad(batch.ids, (0, max(0, width - batch.ids.shape[1])), value=spec.tokens.mask_id)
        request = Forward(
            tokens=torch.where(noisy, spec.tokens.mask_id, padded[:, :width]),
            positions=torch.where(column < (start + count)[:, None], column, -1),
            targets=torch.where(is_target, column, -1),
            attention=spec.network.attention,
            prompt=start,
            time=gaussian.level(spec, log_snr).float(),
            extra=(VectorQuery("predict", noisy=noisy),),
        )
        return LatentBatch(
            request=request,
            target=torch.zeros(len(row), dtype=torch.int64),
            weight=torch.ones(len(row)),
            row=row,
            rows=rows,
            tokens=int(tokens.sum()),
            forbidden=forbidden_ids(spec),
            continuous=continuous,
            clean_ids=batch.ids[batch.target],
            ids_row=batch.target.nonzero()[:, 0],
            vector_index=(~is_length).nonzero()[:, 0],
            length_index=is_length.nonzero()[:, 0],
            length=tokens[row[is_length]],
            log_snr=log_snr[row[~is_length]],
            noise=vectors.normal((int(count.sum()), continuous.width), generator, batch.ids.device),
            last_noise=vectors.normal((int(count.sum()), continuous.width), generator, batch.ids.device),
            self_condition=self_condition,
        )

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[LatentBatch]:
        """Encode the vectors; then decode them for the bound, or make a first prediction for self-conditioning."""
        encoding = vectors.encoding(batch, spec)
        prepared = vectors.add_noise(self.prepare(batch, spec, generator), (yield RolloutPass(encoding)))
        request, query = prepared.request, prepared.request.find(VectorQuery)
        assert query is not None and query.noisy is not None
        if self.weight == "bound":
            answer = yield RolloutPass(_decoding(prepared, query, encoding))
            ids, forbidden = upload(prepared.clean_ids, answer.device), upload(prepared.forbidden, answer.device)
            nll, _ = cross_entropy(answer, ids, forbidden)
            return replace(prepared, decoded=nll)
        if not prepared.self_condition:
            return prepared
        assert prepared.noisy is not None
        answer = yield RolloutPass(request)
        v = answer[upload(prepared.vector_index, answer.device), : prepared.noisy.shape[1]]
        clean = gaussian.clean_of(v, prepared.noisy.to(v), upload(prepared.log_snr, v.device).to(v))
        previous = vectors.scatter_vectors(clean, query.noisy)
        return replace(prepared, request=request.with_extra(replace(query, previous=previous)))

    def loss(self, logits: Tensor, prepared: LatentBatch) -> LossTerms:
        """The loss to minimise and each row's bound in nats (``uniform``: |v - v_hat|^2 / 2). Logits are [N, V]."""
        answer, places, lengths = logits, prepared.vector_index, prepared.length_index
        assert prepared.clean is not None
        clean, log_snr = prepared.clean.float(), prepared.log_snr.float()
        noise = prepared.noise.to(clean)
        v = answer[places, : clean.shape[1]].float()
        error = (v - gaussian.v_of(clean, noise, log_snr)).square().sum(-1)
        row = prepared.row
        length = answer.new_zeros(0, dtype=torch.float32)
        if len(lengths):
            scores = answer[lengths].float()
            true_length = torch.minimum(prepared.length, scores.isfinite().sum(1).amin() - 1)
            length = -scores.log_softmax(-1).gather(1, true_length[:, None])[:, 0]
        nats = per_row(length, row[lengths], prepared.rows)
        length_loss = self.length_weight * length.sum() / prepared.rows
        if self.weight == "uniform":
            loss = error.mean() / clean.shape[1] if len(error) else error.sum()
            nats = nats + per_row(error / 2, row[places], prepared.rows)
            return LossTerms(loss + length_loss, nats, prepared.tokens, False)
        continuous, decoded = prepared.continuous, prepared.decoded
        assert decoded is not None
        own = vectors.diffusion_nats(error * (-log_snr).sigmoid(), log_snr, continuous)
        own = own + vectors.prior_nats(clean, continuous)
        nats = nats + per_row(own, row[places], prepared.rows)
        nats = nats + per_row(decoded, prepared.ids_row, prepared.rows)
        loss = (own.sum() + decoded.sum()) / max(prepared.tokens, 1) + length_loss
        return LossTerms(loss, nats, prepared.tokens, True)


def _decoding(prepared: LatentBatch, noised: VectorQuery, encoding: Forward) -> Forward:
    """Request all tokens from vectors at the cleanest noise level."""
    clean = prepared.clean
    assert clean is not None and noised.noisy is not None and encoding.prompt is not None
    first = torch.full((len(clean),), gaussian.ends(prepared.continuous)[0], dtype=clean.dtype, device=clean.device)
    z = gaussian.Gaussian().corrupt(clean, first, prepared.last_noise.to(clean))
    target = (encoding.positions >= encoding.prompt[:, None]) & (encoding.positions >= 0)
    query = VectorQuery("decode", vectors.scatter_vectors(z, noised.noisy), noised.noisy)
    return replace(prepared.request, targets=torch.where(target, encoding.positions, -1)).with_extra(query)
