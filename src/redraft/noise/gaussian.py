"""Gaussian: noise on vectors, given by its log-SNR: z = alpha x + sigma noise, alpha^2 + sigma^2 = 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.noise.base import NoiseSource
from redraft.runtime import keyed_uniform
from redraft.types import Continuous, Spec


@dataclass(frozen=True)
class Gaussian(NoiseSource):
    """The variance-preserving process of Ho et al. 2020 (arXiv:2006.11239), with the log-SNR g = log(alpha^2 / sigma^2)
    in place of time (Kingma et al. 2021, arXiv:2107.00630):

        q(z_g | x) = N(alpha x, sigma^2),    alpha^2 = sigmoid(g),    sigma^2 = sigmoid(-g)

        q(z_s | z_t, x) = N(alpha_s x + c (z_t - alpha_t x), v)   for g_s > g_t, with r = sigma_s^2 / sigma_t^2,
                          c = r alpha_t / alpha_s,    v = sigma_s^2 (1 - c alpha_t / alpha_s)

    alpha(t) of a schedule is the variance of the signal, alpha^2 here: schedule ``cosine`` with power 2 is the usual
    cosine schedule. Each component of a clean vector has variance 1.
    """

    def sample(self, seed: Tensor, noise_step: Tensor, positions: Tensor, spec: Spec) -> Tensor:
        """Tokens [R, W] at positions whose vectors are noise: the mask, as they are not used. As ``Process.draw``."""
        return torch.full_like(positions, spec.tokens.mask_id)

    def corrupt(self, clean: Tensor, log_snr: Tensor, noise: Tensor) -> Tensor:
        """z [..., Z] from clean vectors and standard normal noise [..., Z] at ``log_snr`` [...]."""
        alpha, sigma = coefficients(log_snr)
        return alpha * clean + sigma * noise

    def posterior(self, z: Tensor, clean: Tensor, log_snr_s: Tensor, log_snr_t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean [..., Z] and variance [..., 1] of q(z_s | z_t, x)."""
        alpha_s, sigma_s = coefficients(log_snr_s)
        alpha_t, sigma_t = coefficients(log_snr_t)
        kept = alpha_t / alpha_s
        pull = (sigma_s / sigma_t).square() * kept
        return alpha_s * clean + pull * (z - alpha_t * clean), sigma_s.square() * (1 - pull * kept)


def coefficients(log_snr: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma [..., 1] of log-SNRs [...]."""
    return log_snr.sigmoid().sqrt()[..., None], (-log_snr).sigmoid().sqrt()[..., None]


def ends(latents: Continuous) -> tuple[float, float]:
    """The log-SNRs of the cleanest and of the noisiest vectors, scale included."""
    shift = 2 * math.log(latents.scale)
    return latents.cleanest + shift, latents.noisiest + shift


def log_snr(spec: Spec, t: Tensor) -> Tensor:
    """The log-SNR [...] at times t [...] of the model's schedule, clamped to its ends and scaled; float64."""
    assert spec.family.schedule is not None and spec.family.continuous is not None
    alpha, latents = spec.family.schedule.alpha(t.double()).clamp(1e-12, 1 - 1e-12), spec.family.continuous
    inside = alpha.logit().clamp(latents.noisiest, latents.cleanest)
    return inside + 2 * math.log(latents.scale)


def level(spec: Spec, log_snr: Tensor) -> Tensor:
    """The noise level [...] that the network gets as time: 0 at the cleanest log-SNR [...], 1 at the noisiest."""
    assert spec.family.continuous is not None
    first, last = ends(spec.family.continuous)
    return (first - log_snr) / (first - last)


def clean_of(v: Tensor, z: Tensor, log_snr: Tensor) -> Tensor:
    """The clean vectors [..., Z] from v = alpha noise - sigma clean [..., Z] and z [..., Z] at ``log_snr`` [...]
    (Salimans and Ho 2022, arXiv:2202.00512)."""
    alpha, sigma = coefficients(log_snr)
    return alpha * z - sigma * v


def v_of(clean: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
    """v = alpha noise - sigma clean [..., Z], at ``log_snr`` [...]."""
    alpha, sigma = coefficients(log_snr)
    return alpha * noise - sigma * clean


def keyed_normal(seed: Tensor, noise_step: Tensor, positions: Tensor, width: int) -> Tensor:
    """Standard normal vectors that depend only on (seed, noise step, position).

    ``seed`` [R], ``noise_step`` [R], ``positions`` [R, W] -> [R, W, Z] float64 on the CPU.
    """
    each = positions[..., None] * width + torch.arange(width)
    return torch.special.ndtri(keyed_uniform(seed, noise_step, each.flatten(1)).view(each.shape))
