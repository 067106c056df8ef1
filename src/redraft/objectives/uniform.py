"""Uniform diffusion: replace random tokens by random other tokens, and learn to recover the original ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.noise.uniform import Uniform as Process
from redraft.objectives.base import Objective
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.objectives.shared import noise as noise
from redraft.objectives.shared import times as times
from redraft.objectives.shared.cross_entropy import per_row
from redraft.objectives.shared.mixture import mixture
from redraft.types import Batch, LossTerms, Prepared, Spec

LAST = 1 - 1e-3  # end of continuous time: above it, -alpha'/alpha is unbounded and there is nothing to learn


@dataclass
class RatedBatch(Prepared):
    """A batch whose terms have individual rates, and the divergence of the final noise from the prior."""

    is_length: Tensor  # [N] bool: the target is a length
    rate: Tensor  # [N] float64 weight of each position in the bound
    prior: Tensor  # [] float64 nats of the prior term per position
    n: Tensor  # [] float64 size of the alphabet: tokens that text and noise may hold


@dataclass
class UniformBatch(RatedBatch):
    """A batch with random tokens."""

    own: Tensor  # [N] the noisy token of each position
    alpha: Tensor  # [N] float64
    before: Tensor | None = None  # [N] float64 alpha one step before, in discrete time


@dataclass(frozen=True)
class Uniform(Objective[UniformBatch]):
    """The bound of UDLM (Schiff et al. 2024, arXiv:2412.10193) and Duo (Sahoo et al. 2025, arXiv:2506.10892).

    With n tokens, p the prediction, x the clean and z the noisy token of a position, xbar = n alpha x + 1 - alpha,
    pbar likewise, r_y = xbar_y / xbar_z and s_y = pbar_y / pbar_z,

        -log p(x) <= E_t [ -alpha'(t) / (n alpha(t)) sum_i sum_{y != z} ( s_y - r_y log s_y + r_y log r_y - r_y ) ]

    which is a score entropy (``score_entropy``). Every position is requested, since every one may be noise.

    The optimal p is the *leave-one-out* prediction of x_i from all noisy tokens except its own (arXiv:2605.22765). A
    classifier of x_i from all noisy tokens would learn p_y (1 + [y = z] n alpha / (1 - alpha)), normalised.

    Fields:
        steps: 0 for continuous time; T > 0 for the bound of D3PM (Austin et al. 2021, arXiv:2107.03006) at T steps,
            T KL(q(x_s | x_t, x_0) || q(x_s | x_t, p)) with s = t - 1/T, which at s = 0 is the reconstruction term.
        length_weight, t_min, t_max: as in ``Masked``, which also describes the length and the ends of the schedule.

    Continuous time ends at t = 0.999. The divergence of the noise at this time from pure noise is added exactly.
    """

    steps: int = 0
    length_weight: float = 0.1
    t_min: float = 0.0
    t_max: float = 1.0

    additive = True

    def __post_init__(self) -> None:
        times.check_span(self.t_min, self.t_max, self.steps)
        if self.steps < 0:
            raise UserError(
                f"objective uniform: steps = {self.steps} must be at least 0.", "Use 0 for continuous time."
            )

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> UniformBatch:
        """Draw noise for the target positions of a batch [B, L] and request all of them."""
        schedule, rows, where = noise.rescaled_schedule(spec), batch.ids.shape[0], batch.ids.device
        can = noise.noisable(batch, spec)
        if self.steps:
            t = times.discrete(rows, self.steps, generator, where)
            alpha, before = schedule.alpha(t), schedule.alpha((t - 1 / self.steps).clamp(min=0))
            noisy = Process().corrupt(batch.ids, alpha, can, spec, generator)
            return self.request(batch, spec, can, noisy, t, alpha, torch.full_like(t, self.steps), before)
        end = torch.tensor(LAST, dtype=torch.float64, device=where)
        t = LAST * (self.t_min + (self.t_max - self.t_min) * times.continuous(rows, generator, where))
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
    ) -> UniformBatch:
        """Request the tokens that noise ``can`` [B, L] change, given the ``noisy`` ids [B, L].

        Args:
            t, alpha, rate: [B] time, alpha(t), and the weight of a token: -alpha'/alpha, or the number of steps.
            before: [B] in discrete time, alpha one step before. last: alpha at the end of continuous time.
        """
        masked = Masked(length_weight=self.length_weight).request(batch, spec, can, torch.ones_like(t), t)
        is_target = masked.request.targets >= 0
        is_length, n = length_positions(masked), alphabet_size(masked, spec)
        return UniformBatch(
            request=replace(masked.request, tokens=noisy),
            target=masked.target,
            weight=masked.weight,
            row=masked.row,
            rows=masked.rows,
            tokens=masked.tokens,
            forbidden=masked.forbidden,
            is_length=is_length,
            rate=rate.double()[masked.row],
            prior=torch.zeros_like(n) if last is None else _from_prior(last, n),
            n=n,
            own=torch.where(is_length, masked.target, noisy[is_target]),
            alpha=alpha.double()[masked.row],
            before=None if before is None else before.double()[masked.row],
        )

    def loss(self, logits: Tensor, prepared: UniformBatch) -> LossTerms:
        """The bound, as the loss and in nats of each row. The logits [N, V] are overwritten."""
        return loss_terms(self._nats(logits, prepared), prepared, (self.t_min, self.t_max) == (0.0, 1.0))

    def _nats(self, logits: Tensor, prepared: UniformBatch) -> Tensor:
        """The nats [N] float64 of each target, before multiplication by its rate."""
        alpha, n, is_length = prepared.alpha, prepared.n, prepared.is_length
        step = None if prepared.before is None else _ReverseStep(prepared.before, alpha, n)
        if step is not None:
            scale, floor = step.gain, step.noise
        else:
            scale, floor = n * alpha, 1 - alpha
        unused = is_length | (floor <= 0)  # these rows need no sum: avoid log(0)
        scale, floor = torch.where(unused, 0.0, scale), torch.where(unused, 1.0, floor)
        ids = torch.stack([prepared.own, prepared.target], 1)
        total, log_p = mixture(logits, prepared.forbidden, scale, floor, ids, is_length)
        total, log_p = total.to(n.dtype), log_p.to(n.dtype)
        same = prepared.own == prepared.target
        if step is not None:
            nats = step.divergence(total, log_p[:, 0], log_p[:, 1], same)
        else:
            bar = torch.logaddexp((n * alpha).log()[:, None] + log_p, (1 - alpha).log()[:, None])
            scores = torch.expm1(n.log() - bar[:, 0])
            nats = score_entropy(scores, total - n * bar[:, 0], bar[:, 1] - bar[:, 0], same, alpha, n)
        return torch.where(is_length, -log_p[:, 1], nats)


def length_positions(masked: MaskedBatch) -> Tensor:
    """The targets that are lengths [N] bool."""
    return torch.zeros_like(masked.row, dtype=torch.bool) if masked.is_length is None else masked.is_length


def alphabet_size(masked: Prepared, spec: Spec) -> Tensor:
    """The number of tokens that text and noise may hold, [] float64."""
    count = float(spec.tokens.vocab_size - len(masked.forbidden))
    return torch.tensor(count, dtype=torch.float64, device=masked.target.device)


def loss_terms(each: Tensor, prepared: RatedBatch, is_bound: bool) -> LossTerms:
    """Combine the nats ``each`` [N] of the targets: those of tokens times their rate, those of lengths unchanged."""
    rate = torch.where(prepared.is_length, 1.0, prepared.rate)
    prior = torch.where(prepared.is_length, 0.0, prepared.prior)
    terms = rate * each
    return LossTerms(
        loss=(terms * prepared.weight).sum().float() / max(prepared.tokens, 1),
        nats=per_row(terms.clamp(min=0) + prior, prepared.row, prepared.rows),  # negative only by rounding
        tokens=prepared.tokens,
        is_bound=is_bound,
    )


def score_entropy(scores: Tensor, logs: Tensor, log_clean: Tensor, same: Tensor, alpha: Tensor, n: Tensor) -> Tensor:
    """1/n sum_{y != z} (s_y - r_y log s_y + r_y log r_y - r_y) for uniform noise (Lou et al. 2024, arXiv:2310.16834).

    If z = x, r_y = r = (1 - alpha) / (1 - alpha + n alpha) for every y. Otherwise r_y = 1, except 1 / r at y = x.

    Args:
        scores, logs: [N] sums over y != z of s_y and of log s_y. log_clean: [N] log s_x.
        same: [N] z = x. alpha: [N]. n: number of tokens.
    Returns:
        [N] nats.
    """
    r = (1 - alpha) / (1 - alpha + n * alpha)
    untouched = scores - r * logs + (n - 1) * r * (r.log() - 1)
    replaced = scores - (logs - log_clean) - log_clean / r - (r.log() + 1) / r - (n - 2)
    return torch.where(same, untouched, replaced) / n


@dataclass(frozen=True)
class _ReverseStep:
    """One step of the reverse process in discrete time, from alpha_t to alpha_s, with n tokens; tensors [N]."""

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
        """Probability that every token gets independently of x_t and x_0."""
        return (1 - self.kept) * (1 - self.alpha_s) / self.n

    def divergence(self, total: Tensor, log_own: Tensor, log_clean: Tensor, same: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) || q(x_s | x_t, p)).

        Args:
            total: [N] sum over all tokens of log(gain p + noise). log_own, log_clean: [N] log p of x_t and of x_0.
            same: [N] bool, x_t = x_0.
        """
        n, a, gain, noise = self.n, self.alpha_t, self.gain, self.noise
        stay = self.kept - a + noise
        norm = n * a * same + 1 - a
        q_own = torch.where(same, n * a + gain, 0.0) / norm + stay / norm
        q_clean = torch.where(same, 0.0, gain + noise) / norm
        q_rest, others = noise / norm, n - 2 + same.to(n.dtype)

        log_p_own = torch.logaddexp((n * a + gain).log() + log_own, stay.log())
        log_p_clean = torch.logaddexp(gain.log() + log_clean, noise.log())
        log_p_rest = total - torch.logaddexp(gain.log() + log_own, noise.log()) - torch.where(same, 0.0, log_p_clean)
        log_norm = torch.logaddexp((n * a).log() + log_own, (1 - a).log())
        entropy = torch.xlogy(q_own, q_own) + torch.xlogy(q_clean, q_clean) + others * torch.xlogy(q_rest, q_rest)
        return entropy - q_own * log_p_own - q_clean * log_p_clean - q_rest * log_p_rest + log_norm


def _from_prior(alpha: Tensor, n: Tensor) -> Tensor:
    """KL divergence of a noised token at ``alpha`` [] from pure noise with ``n`` [] tokens -> []."""
    one, rest = (n * alpha + 1 - alpha) / n, (1 - alpha) / n
    return torch.xlogy(one, n * one) + (n - 1) * torch.xlogy(rest, n * rest)
