"""Embedding-space diffusion: noise on token embeddings, tokens predicted, and the variational bound."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise import gaussian
from redraft.objectives import _noise as noise
from redraft.objectives import _times as times
from redraft.objectives import _vectors as vectors
from redraft.objectives._cross_entropy import check_smoothing, cross_entropy, per_row
from redraft.types import Attend, Batch, Forward, LossTerms, Prepared, Spec, Vectors


@dataclass(frozen=True)
class Embedding:
    """Diffusion-LM (Li et al. 2022, arXiv:2205.14217) with the bound of Plaid (Gulrajani & Hashimoto 2023, 2305.18619):

        -log p(x) <= KL(q(z_noisiest | x) || N(0, 1)) + E[-log p(x | z_cleanest)]
                     + 1/2 E_g [ (g_first - g_last) e^g |e(x) - e_hat(z_g)|^2 ],   g uniform between the ends

    with e(x) the embeddings, e_hat = sum_v p_v e_v of the predicted tokens, and the rounding term

        p(x | z) = prod_i softmax_v( alpha <e_v, z_i> / sigma^2 ),

    exact where all tokens are alike likely, as embeddings are of one length. Length and closing end-of-text count as in
    ``Masked``.

    Fields:
        weight: what is minimised. ``flat``: the mean cross-entropy of the noised tokens at the schedule's noise levels
            (Dieleman et al. 2022, arXiv:2211.15089). ``bound``: the bound, whose gradient also moves the embeddings.
        self_condition: share of batches in which the network first predicts, and is then shown that (2208.04202).
        length_weight, label_smoothing: as in ``Masked``.
    """

    weight: Literal["flat", "bound"] = "bound"
    self_condition: float = 0.0
    length_weight: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_smoothing(self.label_smoothing)
        if self.weight not in ("flat", "bound"):
            raise UserError(f"objective embedding: weight '{self.weight}' is unknown.", "Known: bound, flat.")

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw noise for the target tokens of ``batch``; what their embeddings are, the network says (``ahead``)."""
        what = spec.continuous
        assert what is not None
        rows, length = batch.ids.shape
        log_snr = vectors.log_snrs(spec, times.continuous(rows, generator), even=self.weight == "bound")
        noisy = noise.noisable(batch, spec)
        count, column = batch.target.sum(1), torch.arange(length)
        wanted, ids = noisy, batch.ids
        if spec.length_head and batch.prompt is not None:
            last = batch.prompt[:, None] - 1
            wanted = noisy.scatter(1, last, True)
            ids = ids.scatter(1, last, count.clamp(max=spec.vocab_size - 1)[:, None])
        row, at = wanted.nonzero(as_tuple=True)
        number = ~noisy[row, at]
        size = int(noisy.sum())
        return vectors.Noised(
            ask=Forward(
                x=batch.ids.masked_fill(noisy, spec.mask_id),
                pos=torch.where(batch.valid, column, -1),
                want=torch.where(wanted, column, -1),
                attend=spec.attend,
                prompt=batch.prompt if spec.isolate_prompt else None,
                t=gaussian.level(spec, log_snr).float(),
                vectors=Vectors("predict", noisy=noisy),
            ),
            target=ids[row, at],
            weight=torch.ones(len(row)),
            row=row,
            rows=rows,
            tokens=int(count.sum()),
            extra={
                "number": number,
                "log_snr": log_snr[row[~number]],
                "noise": vectors.normal((size, what.width), generator, batch.ids.device),
                "last_noise": vectors.normal((size, what.width), generator, batch.ids.device),
                "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id})),
                "guess": torch.rand((), generator=generator) < self.self_condition,
            },
            continuous=what,
        )

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """The table of embeddings [V, Z], which learns too; for self-conditioning a first prediction."""
        prepared = self.prepare(batch, spec, generator)
        every, tokens = torch.arange(spec.vocab_size)[None], ~prepared.extra["number"]
        encoding = Forward(every, every, every, Attend(), vectors=Vectors("encode"), learns=True)
        table = yield encoding
        prepared = vectors.noised(prepared, table[prepared.target[tokens]])
        prepared = replace(prepared, extra={**prepared.extra, "table": table})
        ask, given = prepared.ask, prepared.ask.vectors
        assert given is not None and given.noisy is not None
        if not bool(prepared.extra["guess"]):
            return prepared
        answer = yield ask
        p = _probabilities(answer[tokens.to(answer.device)].float(), prepared.extra["forbidden"])
        guess = vectors.rectangle(p @ table.detach().float(), given.noisy)
        return replace(prepared, ask=replace(ask, vectors=replace(given, guess=guess)))

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the bound of each row in nats (with ``flat``: the cross-entropy instead)."""
        assert isinstance(prepared, vectors.Noised) and prepared.continuous is not None
        extra, what = prepared.extra, prepared.continuous
        number, forbidden = extra["number"].to(logits.device), extra["forbidden"].to(logits.device)
        row, target = prepared.row.to(logits.device), prepared.target.to(logits.device)
        size = max(int((~number).sum()), 1)
        if self.weight == "flat":
            nll, train = cross_entropy(logits, target, forbidden, self.label_smoothing, number)
            share = torch.where(number, self.length_weight / prepared.rows, 1 / size)
            return LossTerms((train * share).sum(), per_row(nll, row, prepared.rows), prepared.tokens, False)
        table, tokens = extra["table"].float(), ~number
        own, clean = target[tokens], table[target[tokens]]
        log_snr = extra["log_snr"].to(table)
        gone = clean - _probabilities(logits[tokens].float(), forbidden) @ table
        nats = vectors.diffusion_nats(gone.square().sum(-1), log_snr, what) + vectors.prior_nats(clean, what)
        first = torch.full_like(log_snr, gaussian.ends(what)[0])
        z = gaussian.Gaussian().corrupt(clean, first, extra["last_noise"].to(clean))
        rounding = _rounding(z, table, first, own, forbidden)
        length = logits[number].float().log_softmax(-1).gather(1, target[number][:, None])[:, 0].neg()
        total = nats + rounding
        rows = per_row(total, row[tokens], prepared.rows) + per_row(length, row[number], prepared.rows)
        loss = total.sum() / max(prepared.tokens, 1) + self.length_weight * length.sum() / prepared.rows
        return LossTerms(loss, rows, prepared.tokens, True)


def _probabilities(logits: Tensor, forbidden: Tensor) -> Tensor:
    return logits.index_fill(1, forbidden.to(logits.device), -torch.inf).softmax(-1)


def _rounding(z: Tensor, table: Tensor, log_snr: Tensor, own: Tensor, forbidden: Tensor) -> Tensor:
    """-log p(x | z) [N] of tokens ``own`` [N], given their vectors [N, Z] at ``log_snr`` [N]: Bayes' rule.

    Embeddings are of one length, so that |z - alpha e|^2 = ... - 2 alpha <z, e> + ...; and 1 / sigma^2 = e^g + 1.
    """
    alpha, _ = gaussian.coefficients(log_snr)
    closeness = (z * alpha * (log_snr.exp() + 1)[:, None]) @ table.T
    return -closeness.index_fill(1, forbidden, -torch.inf).log_softmax(-1).gather(1, own[:, None])[:, 0]
