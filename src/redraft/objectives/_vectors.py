"""What the objectives of continuous diffusion share: where vectors stand, and the bound of Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.noise import gaussian
from redraft.types import Batch, Continuous, Forward, Prepared, Spec, Vectors


@dataclass
class Noised(Prepared):
    """A prepared batch of vectors, and what they are."""

    continuous: Continuous | None = None


def starts(batch: Batch) -> Tensor:
    """[B] where the target of each row begins; that of a row without any, at its end."""
    if batch.prompt is not None:
        return batch.prompt
    some = batch.target.any(1)
    return torch.where(some, batch.target.int().argmax(1), batch.valid.sum(1))


def counts(batch: Batch, what: Continuous) -> Tensor:
    """[B] vectors of each row."""
    return -(-batch.target.sum(1) // what.ratio)


def normal(shape: tuple[int, ...], generator: torch.Generator, where: torch.device) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device).to(where)


def encoding(batch: Batch, spec: Spec) -> Forward:
    """Ask for all vectors of the targets of a batch."""
    assert spec.continuous is not None
    start, count = starts(batch), counts(batch, spec.continuous)
    column, each = torch.arange(batch.ids.shape[1]), torch.arange(max(1, int(count.max())))
    return Forward(
        x=batch.ids,
        pos=torch.where(batch.valid, column, -1),
        want=torch.where(each < count[:, None], start[:, None] + each, -1),
        attend=spec.attend,
        prompt=start,
        vectors=Vectors("encode"),
    )


def rectangle(flat: Tensor, marked: Tensor) -> Tensor:
    """Flat [N, Z] at the ``marked`` [R, Q] positions, zero elsewhere -> [R, Q, Z]."""
    place = marked.flatten().nonzero()[:, 0].to(flat.device)
    whole = flat.new_zeros(marked.numel(), flat.shape[1])
    return whole.index_copy(0, place, flat).view(*marked.shape, -1)


def noised(prepared: Prepared, clean: Tensor) -> Prepared:
    """The batch with the noise drawn for it on its ``clean`` vectors [N, Z]."""
    extra, given = prepared.extra, prepared.ask.vectors
    assert given is not None and given.noisy is not None
    z = gaussian.Gaussian().corrupt(clean, extra["log_snr"].to(clean), extra["noise"].to(clean))
    return replace(
        prepared,
        ask=replace(prepared.ask, vectors=replace(given, z=rectangle(z, given.noisy))),
        extra={**extra, "clean": clean, "z": z},
    )


def diffusion_nats(error: Tensor, log_snr: Tensor, what: Continuous) -> Tensor:
    """What a vector contributes to -log p(x), with its squared error |x - x_hat|^2 [N] at a random log-SNR g [N]:

        1/2 integral over g of e^g |x - x_hat(z_g)|^2    (Kingma et al. 2021, arXiv:2107.00630, eq. 17)

    estimated from one g uniform between the ends -> [N].
    """
    first, last = gaussian.ends(what)
    return 0.5 * (first - last) * log_snr.exp() * error


def prior_nats(clean: Tensor, what: Continuous) -> Tensor:
    """KL(q(z | x) || N(0, 1)) at the noisiest end, of clean vectors [N, Z] -> [N]."""
    _, last = gaussian.ends(what)
    alpha, sigma = (part[0] ** 2 for part in gaussian.coefficients(torch.tensor(last, dtype=clean.dtype)))
    return 0.5 * (alpha * clean.square() + sigma - 1 - sigma.log()).sum(-1)


def log_snrs(spec: Spec, t: Tensor, even: bool) -> Tensor:
    """The log-SNRs of times t [B] in (0, 1]: by the schedule, or ``even``ly from the cleanest to the noisiest."""
    if not even:
        return gaussian.log_snr(spec, t)
    assert spec.continuous is not None
    first, last = gaussian.ends(spec.continuous)
    return first + (last - first) * t
