"""Uniform: a token is unchanged with probability alpha(t), otherwise it is a random token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.noise.base import Process
from redraft.runtime import keyed_uniform
from redraft.types import Spec


@dataclass(frozen=True)
class Uniform(Process):
    """D3PM's uniform process (Austin et al. 2021, arXiv:2107.03006, appendix A.2.1) over the n tokens of the alphabet.

    q(x_t | x_0) = alpha_t x_0 + (1 - alpha_t) / n. Noise looks like text, and every token may change again at every
    step. With a = alpha_t / alpha_s, the posterior (Schiff et al. 2024, arXiv:2412.10193) is

        q(x_s | x_t, x_0) = [ n alpha_t x_t * x_0 + (a - alpha_t) x_t + (alpha_s - alpha_t) x_0
                              + (1 - a) (1 - alpha_s) / n ] / [ n alpha_t <x_t, x_0> + 1 - alpha_t ]
    """

    def corrupt(self, ids: Tensor, alpha: Tensor, can: Tensor, spec: Spec, generator: torch.Generator) -> Tensor:
        alpha = alpha if alpha.dim() == 2 else alpha[:, None]
        draws = torch.rand((2, *ids.shape), generator=generator, device=generator.device, dtype=torch.float64)
        chance, which = draws.to(ids.device)
        return torch.where(can & (chance >= alpha), _pick(which, spec), ids)

    def marginal(self, clean: Tensor, alpha: Tensor, spec: Spec) -> Tensor:
        alpha = alpha[..., None]
        return alpha * clean + (1 - alpha) * self.prior(spec).to(clean)

    def posterior(self, noisy: Tensor, clean: Tensor, alpha_s: Tensor, alpha_t: Tensor, spec: Spec) -> Tensor:
        n = len(alphabet(spec))
        alpha_s, alpha_t = alpha_s[..., None], alpha_t[..., None]
        kept = alpha_t / alpha_s
        own = F.one_hot(noisy, spec.tokens.vocab_size).to(clean)
        here = n * alpha_t * own * clean
        routes = (kept - alpha_t) * own + (alpha_s - alpha_t) * clean
        noise = (1 - kept) * (1 - alpha_s) * self.prior(spec).to(clean)
        return (here + routes + noise) / (here.sum(-1, keepdim=True) + 1 - alpha_t)

    def prior(self, spec: Spec) -> Tensor:
        """Equal probability [V] for each token of the alphabet."""
        letters = alphabet(spec)
        return torch.zeros(spec.tokens.vocab_size, dtype=torch.float64).index_fill(0, letters, 1 / len(letters))

    def sample(self, seed: Tensor, noise_step: Tensor, positions: Tensor, spec: Spec) -> Tensor:
        return _pick(keyed_uniform(seed, noise_step, positions), spec)


def alphabet(spec: Spec) -> Tensor:
    """The ids [n] that text and noise may hold: all but the forbidden ones."""
    allowed = torch.ones(spec.tokens.vocab_size, dtype=torch.bool)
    allowed[list(spec.tokens.forbidden)] = False
    return allowed.nonzero()[:, 0]


def _pick(uniform: Tensor, spec: Spec) -> Tensor:
    """A token of the alphabet for each number in [0, 1): the same shape."""
    letters = alphabet(spec).to(uniform.device)
    return letters[(uniform * len(letters)).long().clamp(max=len(letters) - 1)]
