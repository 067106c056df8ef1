"""Score entropy: learn how much likelier every other token would be in the place of each noisy one."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.objectives.masked import Masked
from redraft.objectives.uniform import Uniform, finish, score_entropy
from redraft.types import Batch, LossTerms, Prepared, Spec

_STEEP = 30.0  # exp goes on as a straight line from here, so that no prediction makes the loss infinite


@dataclass(frozen=True)
class Score:
    """The bound of SEDD (Lou et al. 2024, arXiv:2310.16834), for the process of the spec. Scores s_y estimate
    p_t(x with y at i) / p_t(x); with true ratios r_y the loss is that of ``Uniform``, or for masks

        -log p(x) <= E_t [ -alpha'(t) / alpha(t) sum_{i masked} ( sum_y s_y - w log s_x + w (log w - 1) ) ]

    with w = alpha / (1 - alpha). Nothing makes the scores those of a distribution; that has to be learned.

    Logits f become scores as follows, which is SEDD's own parameterisation up to names.

    - Absorbing: s_y = w exp(f_y) / n for masked positions, n tokens. Since the true scores add up to w, the loss is
      the cross-entropy of masked diffusion plus e^g - 1 - g, where g = log sum_y exp(f_y) - log n says how far the
      total is off.
      With scores that add up it equals the loss of ``Masked``.
    - Uniform: s_y = exp(f_y - f_z), z being the noisy token: f is the log-probability of a *noisy* token given all
      others, and softmax(f) = alpha p + (1 - alpha) / n turns this loss into that of ``Uniform``.
    """

    length_weight: float = 0.1
    low: float = 0.0
    high: float = 1.0

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """The noise and the questions of masked or of uniform diffusion."""
        kind = Uniform if spec.process == "uniform" else Masked
        return self.counted(kind(**vars(self)).prepare(batch, spec, generator), spec)

    def counted(self, prepared: Prepared, spec: Spec) -> Prepared:
        """With what the score needs besides: the number of tokens, and which questions are of length."""
        extra = prepared.extra
        n = torch.tensor(float(spec.vocab_size - len(extra["forbidden"])), dtype=torch.float64).to(
            prepared.target.device
        )
        is_length = extra.get("is_length", torch.zeros_like(prepared.row, dtype=torch.bool))
        more = {"n": n, "is_length": is_length}
        if "own" not in extra:
            more |= {"rate": extra["bound"].double(), "prior": torch.zeros_like(n)}
        return replace(prepared, weight=torch.where(is_length, prepared.weight, 1.0), extra={**extra, **more})

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The bound, as loss and in nats of each row."""
        extra = prepared.extra
        n, is_length, z = extra["n"], extra["is_length"], logits.float()
        barred = torch.zeros(z.shape[1], dtype=torch.bool, device=z.device).index_fill(0, extra["forbidden"], True)
        mass = z.masked_fill(barred & ~is_length[:, None], -torch.inf).logsumexp(1).double()
        clean = z.gather(1, prepared.target[:, None])[:, 0].double()
        if "own" in extra:
            own = z.gather(1, extra["own"][:, None])[:, 0].double()
            logs = z.masked_fill(barred, 0.0).sum(1).double() - n * own
            same = extra["own"] == prepared.target
            nats = score_entropy(_exp(mass - own) - 1, logs, clean - own, same, extra["alpha"], n)
        else:
            off = mass - n.log()
            nats = mass - clean + _exp(off) - 1 - off
        each = torch.where(is_length, mass - clean, nats)
        return finish(each, prepared, (self.low, self.high) == (0.0, 1.0))


def _exp(x: Tensor) -> Tensor:
    """exp, with its tangent from _STEEP on."""
    low = x.clamp(max=_STEEP)
    return low.exp() * (1 + x - low)
