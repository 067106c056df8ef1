"""Embedding-space diffusion: noise on token embeddings, prediction of tokens, and the variational bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise import gaussian
from redraft.objectives.base import Objective, Rollout, RolloutPass
from redraft.objectives.shared import noise as noise
from redraft.objectives.shared import times as times
from redraft.objectives.shared import vectors as vectors
from redraft.objectives.shared.cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.objectives.shared.noise import forbidden_ids
from redraft.objectives.shared.vectors import VectorBatch
from redraft.runtime import upload
from redraft.types import AttentionPattern, Batch, Forward, LossTerms, Spec, VectorQuery


@dataclass(kw_only=True)
class EmbeddingBatch(VectorBatch):
    """A batch of noisy embeddings."""

    is_length: Tensor  # [N] bool: the target is a length
    token_index: Tensor  # [K] indices of the targets that are tokens
    length_index: Tensor  # indices of the targets that are lengths
    last_noise: Tensor  # [K, Z] noise at the cleanest level
    self_condition: bool  # a first forward pass makes a prediction, which the second one reads
    table: Tensor | None = None  # [V, Z] embeddings


@dataclass(frozen=True)
class Embedding(Objective[EmbeddingBatch]):
    """Diffusion-LM (Li et al. 2022, arXiv:2205.14217) with the bound of Plaid (Gulrajani & Hashimoto 2023,
    arXiv:2305.18619):

        -log p(x) <= KL(q(z_noisiest | x) || N(0, 1)) + E[-log p(x | z_cleanest)]
                     + 1/2 E_g [ (g_first - g_last) e^g |e(x) - e_hat(z_g)|^2 ],   g uniform between the ends

    with e(x) the embeddings, e_hat = sum_v p_v e_v the expected embedding of the prediction, and the rounding term

        p(x | z) = prod_i softmax_v( alpha <e_v, z_i> / sigma^2 ),

    the posterior under a uniform prior over tokens, as all embeddings have the same length. Length and closing
    end-of-text are treated as in ``Masked``.

    Fields:
        weight: what is minimised. ``uniform``: the mean cross-entropy of the noised tokens at the noise levels of the
            schedule (Dieleman et al. 2022, arXiv:2211.15089). ``bound``: the bound, whose gradient also trains the
            embeddings.
        self_condition: share of batches with self-conditioning on a first prediction (arXiv:2208.04202).
        length_weight, label_smoothing: as in ``Masked``.
    """

    weight: Literal["uniform", "bound"] = "bound"
    self_condition: float = 0.0
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    needs_rollout = True

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        if self.weight not in ("uniform", "bound"):
            raise UserError(f"objective embedding: unknown weight '{self.weight}'.", "Use 'bound' or 'uniform'.")

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> EmbeddingBatch:
        """Draw noise for the target tokens of a batch [B, L]; ``rollout`` adds it to the embeddings."""
        continuous = spec.family.continuous
        assert continuous is not None
        rows, length = batch.ids.shape
        log_snr = vectors.log_snrs(spec, times.continuous(rows, generator), even=self.weight == "bound")
        noisy = noise.noisable(batch, spec)
        count, column = batch.target.sum(1), torch.arange(length)
        is_target, ids = noisy, batch.ids
        if spec.network.length_head and batch.prompt is not None:
            last = batch.prompt[:, None] - 1
            is_target = noisy.scatter(1, last, True)
            ids = ids.scatter(1, last, count.clamp(max=spec.tokens.vocab_size - 1)[:, None])
        row, at = is_target.nonzero(as_tuple=True)
        is_length = ~noisy[row, at]
        size = int(noisy.sum())
        return EmbeddingBatch(
            request=Forward(
                tokens=batch.ids.masked_fill(noisy, spec.tokens.mask_id),
                positions=torch.where(batch.valid, column, -1),
                targets=torch.where(is_target, column, -1),
                attention=spec.network.attention,
                prompt=batch.prompt if spec.network.prompt_encoder else None,
                time=gaussian.level(spec, log_snr).float(),
                extra=(VectorQuery("predict", noisy=noisy),),
            ),
            target=ids[row, at],
            weight=torch.ones(len(row)),
            row=row,
            rows=rows,
            tokens=int(count.sum()),
            forbidden=forbidden_ids(spec),
            continuous=continuous,
            is_length=is_length,
            token_index=(~is_length).nonzero()[:, 0],
            length_index=is_length.nonzero()[:, 0],
            log_snr=log_snr[row[~is_length]],
            noise=vectors.normal((size, continuous.width), generator, batch.ids.device),
            last_noise=vectors.normal((size, continuous.width), generator, batch.ids.device),
            self_condition=bool(torch.rand((), generator=generator) < self.self_condition),
        )

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[EmbeddingBatch]:
        """Request the embeddings [V, Z], with gradient; for self-conditioning also a first prediction."""
        prepared = self.prepare(batch, spec, generator)
        vocabulary, tokens = torch.arange(spec.tokens.vocab_size)[None], ~prepared.is_length
        encoding = Forward(vocabulary, vocabulary, vocabulary, AttentionPattern(), extra=(VectorQuery("encode"),))
        table = yield RolloutPass(encoding, with_gradient=True)
        prepared = replace(
            vectors.add_noise(prepared, table[upload(prepared.target[tokens], table.device)]), table=table
        )
        request, query = prepared.request, prepared.request.find(VectorQuery)
        assert query is not None and query.noisy is not None
        if not prepared.self_condition:
            return prepared
        answer = yield RolloutPass(request)
        p = _probabilities(answer[upload(prepared.token_index, answer.device)].float(), prepared.forbidden)
        previous = vectors.scatter_vectors(p @ table.detach().float(), query.noisy)
        return replace(prepared, request=request.with_extra(replace(query, previous=previous)))

    def loss(self, logits: Tensor, prepared: EmbeddingBatch) -> LossTerms:
        """The loss to minimise and each row's bound in nats (``uniform``: the cross-entropy). Logits are [N, V]."""
        continuous = prepared.continuous
        is_length, forbidden, row, target = prepared.is_length, prepared.forbidden, prepared.row, prepared.target
        tokens, lengths = prepared.token_index, prepared.length_index
        size = max(len(tokens), 1)
        if self.weight == "uniform":
            nll, train = cross_entropy(logits, target, forbidden, self.label_smoothing, is_length)
            share = torch.where(is_length, self.length_weight / prepared.rows, 1 / size)
            return LossTerms((train * share).sum(), per_row(nll, row, prepared.rows), prepared.tokens, False)
        assert prepared.table is not None
        table = prepared.table.float()
        own, clean = target[tokens], table[target[tokens]]
        log_snr = prepared.log_snr.to(table)
        error = clean - _probabilities(logits[tokens].float(), forbidden) @ table
        nats = vectors.diffusion_nats(error.square().sum(-1), log_snr, continuous)
        nats = nats + vectors.prior_nats(clean, continuous)
        first = torch.full_like(log_snr, gaussian.ends(continuous)[0])
        z = gaussian.Gaussian().corrupt(clean, first, prepared.last_noise.to(clean))
        rounding = _rounding(z, table, first, own, forbidden)
        length = logits[lengths].float().log_softmax(-1).gather(1, target[lengths][:, None])[:, 0].neg()
        total = nats + rounding
        rows = per_row(total, row[tokens], prepared.rows) + per_row(length, row[lengths], prepared.rows)
        loss = total.sum() / max(prepared.tokens, 1) + self.length_weight * length.sum() / prepared.rows
        return LossTerms(loss, rows, prepared.tokens, True)


def _probabilities(logits: Tensor, forbidden: Tensor) -> Tensor:
    return logits.index_fill(1, upload(forbidden, logits.device), -torch.inf).softmax(-1)


def _rounding(z: Tensor, table: Tensor, log_snr: Tensor, own: Tensor, forbidden: Tensor) -> Tensor:
    """-log p(x | z) [N] of tokens ``own`` [N], given their vectors ``z`` [N, Z] at ``log_snr`` [N], by Bayes' rule.

    All embeddings of ``table`` [V, Z] have the same length, so |z - alpha e|^2 = -2 alpha <z, e> + const; and
    1 / sigma^2 = e^g + 1.
    """
    alpha, _ = gaussian.coefficients(log_snr)
    similarity = (z * alpha * (log_snr.exp() + 1)[:, None]) @ table.T
    return -similarity.index_fill(1, forbidden, -torch.inf).log_softmax(-1).gather(1, own[:, None])[:, 0]
