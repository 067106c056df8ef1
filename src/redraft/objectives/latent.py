"""Latent diffusion: noise on the vectors of a text autoencoder, and the variational bound over tokens."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from redraft.noise import gaussian
from redraft.objectives import _times as times
from redraft.objectives import _vectors as vectors
from redraft.objectives._cross_entropy import cross_entropy, per_row
from redraft.types import Batch, Continuous, Forward, LossTerms, Prepared, Spec, Vectors


@dataclass(frozen=True)
class Latent:
    """v-prediction on vectors f(x) that an encoder makes of the text (LD4LG, Lovelace et al. 2022, arXiv:2212.09462).

    The bound is that of variational diffusion models (Kingma et al. 2021, arXiv:2107.00630), whose data are f(x):

        -log p(x) <= KL(q(z_noisiest | x) || N(0, 1)) + E[-log p(x | z_cleanest)]
                     + 1/2 E_g [ (g_first - g_last) e^g |f(x) - f_hat(z_g)|^2 ],   g uniform between the ends

    with p(x | z) the decoder's. The number of vectors follows from the length, which counts as in ``Masked``.

    Fields:
        weight: what is minimised. ``flat``: |v - v_hat|^2 / Z per vector, at the schedule's noise levels (Salimans & Ho
            2022, arXiv:2202.00512). ``bound``: the bound, per token. The reported nats are the bound's, with ``bound``.
        self_condition: share of batches in which the network first predicts, and is then shown that (2208.04202).
    """

    weight: Literal["flat", "bound"] = "bound"
    self_condition: float = 0.0
    length_weight: float = 0.1

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw noise for the vectors of ``batch``; what they are without it, the network says (``ahead``)."""
        what = spec.continuous
        assert what is not None
        rows = len(batch.ids)
        t = times.continuous(rows, generator)
        log_snr = vectors.log_snrs(spec, t, even=self.weight == "bound")
        start, count = vectors.starts(batch), vectors.counts(batch, what)
        width = max(1, int((start + count).max()))
        column = torch.arange(width)
        noisy = (column >= start[:, None]) & (column < (start + count)[:, None])
        wanted = noisy.clone()
        with_length = spec.length_head and batch.prompt is not None
        if with_length:
            wanted[torch.arange(rows), start - 1] = True
        row, at = wanted.nonzero(as_tuple=True)
        number = ~noisy[row, at]
        told = torch.rand((), generator=generator).item() < self.self_condition
        tokens = batch.target.sum(1)
        padded = torch.nn.functional.pad(batch.ids, (0, max(0, width - batch.ids.shape[1])), value=spec.mask_id)
        extra = {
            "clean_ids": batch.ids[batch.target],
            "ids_row": batch.target.nonzero()[:, 0],
            "number": number,
            "length": tokens[row[number]],
            "log_snr": log_snr[row[~number]],
            "noise": vectors.normal((int(count.sum()), what.width), generator, batch.ids.device),
            "last_noise": vectors.normal((int(count.sum()), what.width), generator, batch.ids.device),
            "forbidden": torch.tensor(sorted({*spec.forbidden, spec.mask_id})),
            "guess": torch.tensor(told),
        }
        ask = Forward(
            x=torch.where(noisy, spec.mask_id, padded[:, :width]),
            pos=torch.where(column < (start + count)[:, None], column, -1),
            want=torch.where(wanted, column, -1),
            attend=spec.attend,
            prompt=start,
            t=gaussian.level(spec, log_snr).float(),
            vectors=Vectors("predict", noisy=noisy),
        )
        return vectors.Noised(
            ask=ask,
            target=torch.zeros(len(row), dtype=torch.int64),
            weight=torch.ones(len(row)),
            row=row,
            rows=rows,
            tokens=int(tokens.sum()),
            extra=extra,
            continuous=what,
        )

    def ahead(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Generator[Forward, Tensor, Prepared]:
        """The vectors; then for the bound what the decoder says, or for self-conditioning a first prediction."""
        encoding = vectors.encoding(batch, spec)
        prepared = vectors.noised(self.prepare(batch, spec, generator), (yield encoding))
        ask, extra, given = prepared.ask, prepared.extra, prepared.ask.vectors
        assert given is not None and given.noisy is not None
        if self.weight == "bound":
            answer = yield _decoding(ask, encoding, extra, _continuous(prepared))
            nll, _ = cross_entropy(answer, extra["clean_ids"].to(answer.device), extra["forbidden"])
            return replace(prepared, extra={**extra, "decoded": nll})
        if not bool(extra["guess"]):
            return prepared
        v = (yield ask)[~extra["number"], : extra["z"].shape[1]]
        guess = gaussian.clean_of(v, extra["z"].to(v), extra["log_snr"].to(v))
        return replace(prepared, ask=replace(ask, vectors=replace(given, guess=vectors.rectangle(guess, given.noisy))))

    def loss(self, answer: Tensor, prepared: Prepared) -> LossTerms:
        """The loss to minimise, and the bound of each row in nats (with ``flat``: |v - v_hat|^2 / 2 instead)."""
        extra, number = prepared.extra, prepared.extra["number"]
        clean, log_snr = extra["clean"].float(), extra["log_snr"].to(answer.device).float()
        noise = extra["noise"].to(clean)
        v = answer[~number, : clean.shape[1]].float()
        error = (v - gaussian.v_of(clean, noise, log_snr)).square().sum(-1)
        row = prepared.row.to(answer.device)
        length = answer.new_zeros(0, dtype=torch.float32)
        if bool(number.any()):
            logits = answer[number].float()
            told = extra["length"].to(answer.device).clamp(max=int(logits.isfinite().sum(1).min()) - 1)
            length = -logits.log_softmax(-1).gather(1, told[:, None])[:, 0]
        nats = per_row(length, row[number], prepared.rows)
        taught = self.length_weight * length.sum() / prepared.rows
        if self.weight == "flat":
            loss = error.mean() / clean.shape[1] if len(error) else error.sum()
            nats = nats + per_row(error / 2, row[~number], prepared.rows)
            return LossTerms(loss + taught, nats, prepared.tokens, False)
        what = _continuous(prepared)
        own = vectors.diffusion_nats(error * (-log_snr).sigmoid(), log_snr, what) + vectors.prior_nats(clean, what)
        nats = nats + per_row(own, row[~number], prepared.rows)
        nats = nats + per_row(extra["decoded"], extra["ids_row"].to(answer.device), prepared.rows)
        loss = (own.sum() + extra["decoded"].sum()) / max(prepared.tokens, 1) + taught
        return LossTerms(loss, nats, prepared.tokens, True)


def _continuous(prepared: Prepared) -> Continuous:
    assert isinstance(prepared, vectors.Noised) and prepared.continuous is not None
    return prepared.continuous


def _decoding(ask: Forward, encoding: Forward, extra: Mapping[str, Tensor], what: Continuous) -> Forward:
    """Ask for all tokens from the cleanest vectors."""
    assert ask.vectors is not None and ask.vectors.noisy is not None and encoding.prompt is not None
    clean = extra["clean"]
    first = torch.full((len(clean),), gaussian.ends(what)[0], dtype=clean.dtype, device=clean.device)
    z = gaussian.Gaussian().corrupt(clean, first, extra["last_noise"].to(clean))
    target = (encoding.pos >= encoding.prompt[:, None]) & (encoding.pos >= 0)
    return replace(
        ask,
        want=torch.where(target, encoding.pos, -1),
        vectors=Vectors("decode", vectors.rectangle(z, ask.vectors.noisy), ask.vectors.noisy),
    )
