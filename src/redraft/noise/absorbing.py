"""Absorbing noise: a token is still itself with probability alpha(t), else it is the mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.types import Spec


@dataclass(frozen=True)
class Absorbing:
    """D3PM's absorbing process (Austin et al. 2021, arXiv:2107.03006, appendix A.2.2): once a mask, always a mask.

    q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) mask. An unmasked token is certain of its past; a masked one was, at
    s < t, already masked with probability (1 - alpha_s) / (1 - alpha_t) and x_0 otherwise.
    """

    def corrupt(self, ids: Tensor, alpha: Tensor, can: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
        alpha = alpha if alpha.dim() == 2 else alpha[:, None]
        draw = torch.rand(ids.shape, generator=generator, device=generator.device, dtype=torch.float64)
        return ids.masked_fill(can & (draw.to(ids.device) >= alpha), spec.mask_id)

    def marginal(self, clean: Tensor, alpha: Tensor, spec: Spec) -> Tensor:
        alpha = alpha[..., None]
        return alpha * clean + (1 - alpha) * self.prior(spec).to(clean)

    def posterior(self, noisy: Tensor, clean: Tensor, alpha_s: Tensor, alpha_t: Tensor, spec: Spec) -> Tensor:
        stay = ((1 - alpha_s) / (1 - alpha_t))[..., None]
        reveal = (1 - stay) * clean + stay * self.prior(spec).to(clean)
        known = F.one_hot(noisy, spec.vocab_size).to(clean)
        return torch.where((noisy == spec.mask_id)[..., None], reveal, known)

    def prior(self, spec: Spec) -> Tensor:
        return F.one_hot(torch.tensor(spec.mask_id), spec.vocab_size).float()

    def draw(self, seed: Tensor, stamp: Tensor, pos: Tensor, spec: Spec) -> Tensor:
        return torch.full_like(pos, spec.mask_id)
