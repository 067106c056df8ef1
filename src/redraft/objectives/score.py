"""Score entropy: learn the probability ratios of every other token to each noisy token."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.objectives.base import Objective
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.objectives.uniform import (
    RatedBatch,
    Uniform,
    UniformBatch,
    alphabet_size,
    length_positions,
    loss_terms,
    score_entropy,
)
from redraft.types import Batch, LossTerms, Spec

_STEEP = 30.0  # exp is replaced by its tangent above this value, so that the loss stays finite


@dataclass(frozen=True)
class Score(Objective[RatedBatch]):
    """The bound of SEDD (Lou et al. 2024, arXiv:2310.16834), for the process of the spec. Scores s_y estimate
    p_t(x with y at i) / p_t(x); with true ratios r_y the loss is that of ``Uniform``, or for masks

        -log p(x) <= E_t [ -alpha'(t) / alpha(t) sum_{i masked} ( sum_y s_y - w log s_x + w (log w - 1) ) ]

    with w = alpha / (1 - alpha). Scores are not constrained to be those of a distribution.

    Logits f are converted to scores as in SEDD, up to notation:

    - Absorbing: s_y = w exp(f_y) / n at masked positions, with n tokens. As the true scores sum to w, the loss is the
      cross-entropy of masked diffusion plus e^g - 1 - g, where g = log sum_y exp(f_y) - log n is the deviation of the
      sum. If the scores sum to w, it equals the loss of ``Masked``.
    - Uniform: s_y = exp(f_y - f_z) with z the noisy token. Here f is the log-probability of a *noisy* token given all
      others; with softmax(f) = alpha p + (1 - alpha) / n this loss equals that of ``Uniform``.
    """

    length_weight: float = 0.1
    t_min: float = 0.0
    t_max: float = 1.0

    additive = True

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> RatedBatch:
        """The noise and the request of masked or of uniform diffusion, for a batch [B, L]."""
        if spec.masks:
            return self.rated(Masked(**vars(self)).prepare(batch, spec, generator), spec)
        prepared = Uniform(**vars(self)).prepare(batch, spec, generator)
        return replace(prepared, weight=torch.where(prepared.is_length, prepared.weight, 1.0))

    def rated(self, masked: MaskedBatch, spec: Spec) -> RatedBatch:
        """The batch with the rates [N] and the number of tokens that the loss needs."""
        is_length, n = length_positions(masked), alphabet_size(masked, spec)
        return RatedBatch(
            request=masked.request,
            target=masked.target,
            weight=torch.where(is_length, masked.weight, 1.0),
            row=masked.row,
            rows=masked.rows,
            tokens=masked.tokens,
            forbidden=masked.forbidden,
            is_length=is_length,
            rate=masked.bound.double(),
            prior=torch.zeros_like(n),
            n=n,
        )

    def loss(self, logits: Tensor, prepared: RatedBatch) -> LossTerms:
        """The bound, as the loss and in nats of each row. The logits are [N, V]."""
        n, is_length, z, exact = prepared.n, prepared.is_length, logits.float(), prepared.n.dtype
        disallowed = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device).index_fill(0, prepared.forbidden, True)
        total = z.masked_fill(disallowed & ~is_length[:, None], -torch.inf).logsumexp(1).to(exact)
        clean = z.gather(1, prepared.target[:, None])[:, 0].to(exact)
        if isinstance(prepared, UniformBatch):
            own = z.gather(1, prepared.own[:, None])[:, 0].to(exact)
            logs = z.masked_fill(disallowed, 0.0).sum(1).to(exact) - n * own
            same = prepared.own == prepared.target
            nats = score_entropy(_exp(total - own) - 1, logs, clean - own, same, prepared.alpha, n)
        else:
            deviation = total - n.log()
            nats = total - clean + _exp(deviation) - 1 - deviation
        each = torch.where(is_length, total - clean, nats)
        return loss_terms(each, prepared, (self.t_min, self.t_max) == (0.0, 1.0))


def _exp(x: Tensor) -> Tensor:
    """exp, replaced by its tangent above _STEEP."""
    low = x.clamp(max=_STEEP)
    return low.exp() * (1 + x - low)
