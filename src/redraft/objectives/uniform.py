"""Uniform diffusion: replace a random part of the text by random tokens, and learn to undo it, not knowing where."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.uniform import Uniform as Process
from redraft.objectives import _noise as noise
from redraft.objectives import _times as times
from redraft.objectives._cross_entropy import per_row
from redraft.objectives._mixture import mixture
from redraft.objectives.masked import Masked
from redraft.types import Batch, LossTerms, Prepared, Spec

LAST = 1 - 1e-3  # where continuous time ends: beyond, -alpha'/alpha grows without limit and there is nothing to learn


@dataclass(frozen=True)
class Uniform:
    """The bound of UDLM (Schiff et al. 2024, arXiv:2412.10193) and Duo (Sahoo et al. 2025, arXiv:2506.10892).

    With n tokens, p the prediction, x the clean and z the noisy token of a position, xbar = n alpha x + 1 - alpha and
    the same of p, and r_y = xbar_y / xbar_z, s_y = pbar_y / pbar_z,

        -log p(x) <= E_t [ -alpha'(t) / (n alpha(t)) sum_i sum_{y != z} ( s_y - r_y log s_y + r_y log r_y - r_y ) ]

    which is a score entropy (``score_entropy``). Every position is asked for, since every one may be noise.

    The best p is the *leave-one-out* prediction, of x_i from all noisy tokens but its own (arXiv:2605.22765); what a
    plain classifier of x_i would learn from all of them is p_y (1 + [y = z] n alpha / (1 - alpha)), normalised.

    Fields:
        steps: 0 for continuous time; T > 0 for the bound of D3PM (Austin et al. 2021, arXiv:2107.03006) at T steps,
            T KL(q(x_s | x_t, x_0) || q(x_s | x_t, p)) with s = t - 1/T, which at s = 0 is the reconstruction term.
        length_weight, low, high: as in ``Masked``, and so are the length and the ends of the schedule.

    Continuous time ends at t = 0.999, and the divergence of what is left there from pure noise is added exactly.
    """

    steps: int = 0
    length_weight: float = 0.1
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        times.check_span(self.low, self.high, self.steps)
        if self.steps < 0:
            raise UserError(f"objective uniform: steps {self.steps} is negative.", "Use 0 for continuous time.")

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """Draw noise for the target positions of ``batch`` and ask for all of them."""
        schedule, rows, where = noise.stretched(spec), batch.ids.shape[0], batch.ids.device
        can = noise.noisable(batch, spec)
        if self.steps:
            t = times.discrete(rows, self.steps, generator, where)
            alpha, before = schedule.alpha(t), schedule.alpha((t - 1 / self.steps).clamp(min=0))
            noisy = Process().corrupt(batch.ids, alpha, can, spec, generator)
            return self.request(batch, spec, can, noisy, t, alpha, torch.full_like(t, self.steps), before)
        end = torch.tensor(LAST, dtype=torch.float64, device=where)
        t = LAST * (self.low + (self.high - self.low) * times.continuous(rows, generator, where))
        alpha = schedule.alpha(t)
        noisy = Process().corrupt(batch.ids, alpha, can, spec, generator)
        return self.request(
            batch, spec, can, noisy, t, alpha, -LAST * schedule.dalpha(t) / alpha, last=schedule.alpha(end)
        )

    def request(
        self,
        batch: Batch,
        spec: Spec,
        can: Tensor,
        noisy: Tensor,
        t: Tensor,
        alpha: Tensor,
        rate: Tensor,
        before: Tensor | None = None,
        last: Tensor | None = None,
    ) -> Prepared:
        """Ask for the tokens that noise ``can`` [B, L] touch, given those it left [B, L].

        Args:
            t, alpha, rate: [B] time, alpha(t), and the weight of a token: -alpha'/alpha, or the number of steps.
            before: [B] alpha one step before, in discrete time. last: alpha where time ends, if it ends before noise.
        """
        asked = Masked(length_weight=self.length_weight).request(batch, spec, can, torch.ones_like(t), t)
        wanted = asked.ask.want >= 0
        is_length = asked.extra.get("is_length", torch.zeros_like(asked.row, dtype=torch.bool))
        n = torch.tensor(float(spec.vocab_size - len(asked.extra["forbidden"])), dtype=torch.float64, device=t.device)
        extra = {
            **asked.extra,
            "is_length": is_length,
            "own": torch.where(is_length, asked.target, noisy[wanted]),
            "alpha": alpha.double()[asked.row],
            "rate": rate.double()[asked.row],
            "n": n,
            "prior": torch.zeros_like(n) if last is None else _from_prior(last, n),
        }
        if before is not None:
            extra["before"] = before.double()[asked.row]
        return replace(asked, ask=replace(asked.ask, x=noisy), extra=extra)

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """The bound, as loss and in nats of each row. Logits [N, V] are consumed."""
        return finish(self._each(logits, prepared), prepared, (self.low, self.high) == (0.0, 1.0))

    def _each(self, logits: Tensor, prepared: Prepared) -> Tensor:
        """[N] float64 nats of each question, before the rate."""
        extra, alpha = prepared.extra, prepared.extra["alpha"]
        n, is_length = extra["n"], extra["is_length"]
        if "before" in extra:
            step = _Step(extra["before"], alpha, n)
            scale, floor = step.gain, step.noise
        else:
            scale, floor = n * alpha, 1 - alpha
        unused = is_length | (floor <= 0)  # no sum over the vocabulary is needed: 0, and no logarithm of 0
        scale, floor = torch.where(unused, 0.0, scale), torch.where(unused, 1.0, floor)
        ids = torch.stack([extra["own"], prepared.target], 1)
        total, log_p = mixture(logits, extra["forbidden"], scale, floor, ids, is_length)
        total, log_p = total.double(), log_p.double()
        same = extra["own"] == prepared.target
        if "before" in extra:
            nats = step.divergence(total, log_p[:, 0], log_p[:, 1], same)
        else:
            bar = torch.logaddexp((n * alpha).log()[:, None] + log_p, (1 - alpha).log()[:, None])
            scores = torch.expm1(n.log() - bar[:, 0])
            nats = score_entropy(scores, total - n * bar[:, 0], bar[:, 1] - bar[:, 0], same, alpha, n)
        return torch.where(is_length, -log_p[:, 1], nats)


def finish(each: Tensor, prepared: Prepared, is_bound: bool) -> LossTerms:
    """Put [N] nats before the rate together: tokens times their rate, lengths as they are."""
    extra = prepared.extra
    rate = torch.where(extra["is_length"], 1.0, extra["rate"])
    prior = torch.where(extra["is_length"], 0.0, extra["prior"])
    terms = rate * each
    return LossTerms(
        loss=(terms * prepared.weight).sum().float() / max(prepared.tokens, 1),
        nats=per_row(terms.clamp(min=0) + prior, prepared.row, prepared.rows),  # below 0 only by rounding
        tokens=prepared.tokens,
        is_bound=is_bound,
    )


def score_entropy(scores: Tensor, logs: Tensor, log_clean: Tensor, same: Tensor, alpha: Tensor, n: Tensor) -> Tensor:
    """1/n sum_{y != z} (s_y - r_y log s_y + r_y log r_y - r_y) for uniform noise (Lou et al. 2024, arXiv:2310.16834).

    With z = x, r_y = r = (1 - alpha) / (1 - alpha + n alpha) for every y; else r_y = 1, but 1 / r at y = x.

    Args:
        scores, logs: [N] sums over y != z of s_y and of log s_y. log_clean: [N] log s_x.
        same: [N] z = x. alpha: [N]. n: number of tokens.
    """
    r = (1 - alpha) / (1 - alpha + n * alpha)
    untouched = scores - r * logs + (n - 1) * r * (r.log() - 1)
    replaced = scores - (logs - log_clean) - log_clean / r - (r.log() + 1) / r - (n - 2)
    return torch.where(same, untouched, replaced) / n


@dataclass(frozen=True)
class _Step:
    """One discrete step from alpha_t to alpha_s, of a position's n tokens; tensors [N]."""

    alpha_s: Tensor
    alpha_t: Tensor
    n: Tensor

    @property
    def kept(self) -> Tensor:
        return self.alpha_t / self.alpha_s

    @property
    def gain(self) -> Tensor:
        return self.alpha_s - self.alpha_t

    @property
    def noise(self) -> Tensor:
        """What every token gets, wherever it came from."""
        return (1 - self.kept) * (1 - self.alpha_s) / self.n

    def divergence(self, total: Tensor, log_own: Tensor, log_clean: Tensor, same: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || q(x_s | x_t, p)).

        Args:
            total: sum over all tokens of log(gain p + noise). log_own, log_clean: log p of x_t and of x_0.
        """
        n, a, gain, noise = self.n, self.alpha_t, self.gain, self.noise
        stay = self.kept - a + noise
        norm = n * a * same + 1 - a
        q_own = torch.where(same, n * a + gain, 0.0) / norm + stay / norm
        q_clean = torch.where(same, 0.0, gain + noise) / norm
        q_rest, others = noise / norm, n - 2 + same.double()

        log_p_own = torch.logaddexp((n * a + gain).log() + log_own, stay.log())
        log_p_clean = torch.logaddexp(gain.log() + log_clean, noise.log())
        log_p_rest = total - torch.logaddexp(gain.log() + log_own, noise.log()) - torch.where(same, 0.0, log_p_clean)
        log_norm = torch.logaddexp((n * a).log() + log_own, (1 - a).log())
        entropy = torch.xlogy(q_own, q_own) + torch.xlogy(q_clean, q_clean) + others * torch.xlogy(q_rest, q_rest)
        return entropy - q_own * log_p_own - q_clean * log_p_clean - q_rest * log_p_rest + log_norm


def _from_prior(alpha: Tensor, n: Tensor) -> Tensor:
    """KL of one noised token at ``alpha`` from pure noise."""
    one, rest = (n * alpha + 1 - alpha) / n, (1 - alpha) / n
    return torch.xlogy(one, n * one) + (n - 1) * torch.xlogy(rest, n * rest)
