"""Shared by objectives of continuous diffusion: positions of vectors, noise on them, and terms of the bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from redraft.noise import gaussian
from redraft.runtime import upload
from redraft.types import Batch, Continuous, Forward, Prepared, Spec, VectorQuery


@dataclass(kw_only=True)
class VectorBatch(Prepared):
    """A batch of vectors. K: vectors of the batch."""

    continuous: Continuous
    log_snr: Tensor  # [K]
    noise: Tensor  # [K, Z]
    clean: Tensor | None = None  # [K, Z]; None: not encoded yet
    noisy: Tensor | None = None  # [K, Z] clean vectors with noise; None: not encoded yet


VB = TypeVar("VB", bound=VectorBatch)


def target_starts(batch: Batch) -> Tensor:
    """The first target position [B] of each row; for rows without targets, the length of the row."""
    if batch.prompt is not None:
        return batch.prompt
    has_target = batch.target.any(1)
    return torch.where(has_target, batch.target.int().argmax(1), batch.valid.sum(1))


def vector_counts(batch: Batch, continuous: Continuous) -> Tensor:
    """The number [B] of vectors of each row."""
    return -(-batch.target.sum(1) // continuous.ratio)


def normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Standard normal numbers of a shape [...], drawn on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device).to(device)


def encoding(batch: Batch, spec: Spec) -> Forward:
    """Request the vectors of the targets of a batch [B, L]."""
    assert spec.family.continuous is not None
    start, count = target_starts(batch), vector_counts(batch, spec.family.continuous)
    column, each = torch.arange(batch.ids.shape[1]), torch.arange(max(1, int(count.max())))
    return Forward(
        tokens=batch.ids,
        positions=torch.where(batch.valid, column, -1),
        targets=torch.where(each < count[:, None], start[:, None] + each, -1),
        attention=spec.network.attention,
        prompt=start,
        extra=(VectorQuery("encode"),),
    )


def scatter_vectors(flat: Tensor, mask: Tensor) -> Tensor:
    """Vectors ``uniform`` [N, Z] at the positions of ``mask`` [R, Q] bool, zero elsewhere -> [R, Q, Z]."""
    place = upload(mask.flatten().nonzero()[:, 0], flat.device)
    whole = flat.new_zeros(mask.numel(), flat.shape[1])
    return whole.index_copy(0, place, flat).view(*mask.shape, -1)


def add_noise(prepared: VB, clean: Tensor) -> VB:
    """Add the noise of a batch to its ``clean`` vectors [N, Z]."""
    query = prepared.request.find(VectorQuery)
    assert query is not None and query.noisy is not None
    z = gaussian.Gaussian().corrupt(clean, _like(prepared.log_snr, clean), _like(prepared.noise, clean))
    return replace(
        prepared,
        request=prepared.request.with_extra(replace(query, vectors=scatter_vectors(z, query.noisy))),
        clean=clean,
        noisy=z,
    )


def _like(tensor: Tensor, other: Tensor) -> Tensor:
    return upload(tensor, other.device).to(other.dtype)


def diffusion_nats(error: Tensor, log_snr: Tensor, continuous: Continuous) -> Tensor:
    """The diffusion term of -log p(x), from squared errors |x - x_hat|^2 [N] at random log-SNRs g [N]:

        1/2 integral over g of e^g |x - x_hat(z_g)|^2    (Kingma et al. 2021, arXiv:2107.00630, eq. 17)

    estimated from one g per vector, uniform between the cleanest and the noisiest -> [N].
    """
    first, last = gaussian.ends(continuous)
    return 0.5 * (first - last) * log_snr.exp() * error


def prior_nats(clean: Tensor, continuous: Continuous) -> Tensor:
    """KL(q(z | x) || N(0, 1)) at the noisiest level, of clean vectors [N, Z] -> [N]."""
    _, last = gaussian.ends(continuous)
    alpha, sigma = (part[0] ** 2 for part in gaussian.coefficients(torch.tensor(last, dtype=clean.dtype)))
    return 0.5 * (alpha * clean.square() + sigma - 1 - sigma.log()).sum(-1)


def log_snrs(spec: Spec, t: Tensor, even: bool) -> Tensor:
    """The log-SNRs [B] at times t [B] in (0, 1]: by the schedule, or if ``even`` linear from cleanest to noisiest."""
    if not even:
        return gaussian.log_snr(spec, t)
    assert spec.family.continuous is not None
    first, last = gaussian.ends(spec.family.continuous)
    return first + (last - first) * t
