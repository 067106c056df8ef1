"""Absorbing: a token is unchanged with probability alpha(t), otherwise it is the mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.noise.base import Process
from redraft.types import Spec


@dataclass(frozen=True)
class Absorbing(Process):
    """D3PM's absorbing process (Austin et al. 2021, arXiv:2107.03006, appendix A.2.2): a mask stays a mask.

    q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) mask. A token that is not masked at t was the same at s < t. A token that
    is masked at t was already masked at s with probability (1 - alpha_s) / (1 - alpha_t), and x_0 otherwise.
    """

    masks = True

    def corrupt(self, ids: Tensor, alpha: Tensor, can: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
        alpha = alpha if alpha.dim() == 2 else alpha[:, None]
        draw = torch.rand(ids.shape, generator=generator, device=generator.device, dtype=torch.float64)
        return ids.masked_fill(can & (draw.to(ids.device) >= alpha), spec.tokens.mask_id)

    def marginal(self, clean: Tensor, alpha: Tensor, spec: Spec) -> Tensor:
        alpha = alpha[..., None]
        return alpha * clean + (1 - alpha) * self.prior(spec).to(clean)

    def posterior(self, noisy: Tensor, clean: Tensor, alpha_s: Tensor, alpha_t: Tensor, spec: Spec) -> Tensor:
        stay = ((1 - alpha_s) / (1 - alpha_t))[..., None]
        reveal = (1 - stay) * clean + stay * self.prior(spec).to(clean)
        known = F.one_hot(noisy, spec.tokens.vocab_size).to(clean)
        return torch.where((noisy == spec.tokens.mask_id)[..., None], reveal, known)

    def prior(self, spec: Spec) -> Tensor:
        """The mask, one-hot [V]."""
        return F.one_hot(torch.tensor(spec.tokens.mask_id), spec.tokens.vocab_size).float()

    def sample(self, seed: Tensor, noise_step: Tensor, positions: Tensor, spec: Spec) -> Tensor:
        return torch.full_like(positions, spec.tokens.mask_id)
