"""Parity of SEDD (louaaron/Score-Entropy-Discrete-Diffusion), with absorbing and with uniform noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from redraft.model import Model
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.geometric import Geometric
from redraft.noise.schedules.linear import Linear
from redraft.noise.uniform import Uniform
from redraft.parity.outputs import exponential_race, model_logits, schedules, score_entropy, uniform_score_entropy
from redraft.parity.reference import Check, Reference, Suite
from redraft.samplers.analytic import leap, reveal_probability
from redraft.types import Schedule, Spec


def checks(reference: Reference) -> Iterator[Check]:
    """Network, graph, schedules, reverse steps and sampling, for both kinds of noise."""
    for graph in ("absorb", "uniform"):
        part = reference.part(graph)
        model = part.load()
        given = Scores(model, graph)
        ours: dict[str, Schedule] = {"loglinear": Linear(1e-3), "geometric_1e-4_20": Geometric(1e-4, 20)}
        for check in (
            *_model(part, given),
            *_graph(part, given),
            *schedules(part, part.tensors("schedules"), ours),
            *_steps(part, given),
            *_runs(part, given),
        ):
            yield replace(check, model=f"{check.model}, {graph}")


@dataclass(frozen=True)
class Scores:
    """A checkpoint with the outputs of SEDD: log-scores, 0 for the current token, at noise sigma = -log alpha."""

    model: Model
    graph: str

    @property
    def absorbs(self) -> bool:
        """Is the noise absorbing (not uniform)?"""
        return self.graph == "absorb"

    @property
    def spec(self) -> Spec:
        """The model's spec, without forbidden ids."""
        return self.model.spec.with_tokens(forbidden=())

    @property
    def schedule(self) -> Any:
        """The schedule of the checkpoint."""
        c = self.model.network.config
        return Geometric(c.sigma_min, c.sigma_max) if c.noise == "geometric" else Linear(c.epsilon)

    def sigma(self, t: Tensor) -> Tensor:
        """Noise sigma at times [B]."""
        return -torch.log(self.schedule.alpha(t.double()))

    def rate(self, t: Tensor) -> Tensor:
        """d sigma / dt at times [B]."""
        t = t.double()
        found: Tensor = -self.schedule.dalpha(t) / self.schedule.alpha(t)
        return found

    def time(self, sigma: Tensor) -> Tensor:
        """The times of noise sigma [B]."""
        c = self.model.network.config
        if c.noise == "geometric":
            return (sigma / c.sigma_min).log() / math.log(c.sigma_max / c.sigma_min)
        return -torch.expm1(-sigma) / (1 - c.epsilon)

    def log_score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Log-scores [B, L, V] of ids [B, L] at noise sigma [B]."""
        found = model_logits(self.model, x, t=self.time(sigma).float())
        if self.absorbs:
            size = torch.expm1(sigma).log() + math.log(self.spec.tokens.vocab_size - 1)
            found = (found - size[:, None, None]).scatter(2, x[..., None], 0.0)
        return found

    def leap(self, log_score: Tensor, x: Tensor, sigma: Tensor, then: Tensor) -> Tensor:
        """Distribution [B, L, V] after a step from noise ``sigma`` to ``then`` [B], by redraft's analytic sampler."""
        now, before = (torch.exp(-s.double())[:, None].expand(x.shape).flatten() for s in (sigma, then))
        spec, flat, own = self.spec, log_score.flatten(0, 1).double(), x.flatten()
        if not self.absorbs:
            f = flat.log_softmax(-1)
            return leap(f, own, now, before, spec).softmax(-1).view(log_score.shape)
        f = flat.index_fill(1, torch.tensor(spec.tokens.mask_id), -torch.inf)
        n = spec.tokens.vocab_size - 1
        log_z = f.logsumexp(1) + (1 / now - 1).log() + math.log(n)  # logits f = log s - log w + log n
        chance = reveal_probability(log_z, now, before, spec)[:, None]
        p = chance * f.softmax(1) + (1 - chance) * F.one_hot(torch.tensor(spec.tokens.mask_id), n + 1)
        p = torch.where((own == spec.tokens.mask_id)[:, None], p, F.one_hot(own, n + 1).double())
        return p.view(log_score.shape)

    def transition(self, size: int, sigma: Tensor) -> Tensor:
        """exp(sigma Q) [..., V, V]: row i is the distribution of token i after noise sigma [...]."""
        spec = self.spec.with_tokens(vocab_size=size, mask_id=size - 1)
        alpha = torch.exp(-sigma.double())[..., None].expand(*sigma.shape, size)
        return self.process.marginal(torch.eye(size, dtype=torch.float64).expand(*alpha.shape, size), alpha, spec)

    @property
    def process(self) -> Absorbing | Uniform:
        """The noise process."""
        return Absorbing() if self.absorbs else Uniform()

    def rates(self, size: int) -> Tensor:
        """Q = d/dsigma exp(sigma Q) at 0 [V, V]: marginals are linear in alpha = exp(-sigma)."""
        return self.transition(size, torch.tensor(torch.inf)) - self.transition(size, torch.tensor(0.0))

    def reverse(self, x: Tensor, score: Tensor) -> Tensor:
        """Reverse rates [B, L, V] of ids ``x`` [B, L] for scores [B, L, V]."""
        rate = self.rates(score.shape[-1]).T[x] * score.double()
        rate = rate.scatter(2, x[..., None], 0.0)
        return rate.scatter(2, x[..., None], -rate.sum(2, keepdim=True))


def _model(reference: Reference, given: Scores) -> Iterator[Check]:
    """The network, and the loss for its scores."""
    values = reference.tensors("model")
    x0, xt, t, sigma = values["x0"], values["xt"], values["t"], values["sigma"]
    yield reference.close("sigma", given.sigma(t), sigma, 1e-5, 1e-6)
    yield reference.close("dsigma", given.rate(t), values["dsigma"], 1e-5, 1e-6)
    yield reference.close("log-scores", given.log_score(xt, sigma), values["log_score"])
    low = torch.full_like(sigma, 1e-3)
    yield reference.close("log-scores at low noise", given.log_score(x0, low), values["log_score_low_sigma"])
    expected = values["score_entropy_tokens"].double() * values["dsigma"].double()[:, None]
    found = _entropy(given, values["log_score"], x0, xt, sigma, values["dsigma"])
    rtol = 2e-4
    if not given.absorbs:  # SEDD computes 1 - n / (e^sigma - 1 + n) in single precision, which loses digits
        odds = torch.expm1(sigma)
        rtol += float((torch.finfo(torch.float32).eps * (odds + 256) / odds).max())
    yield reference.close("score entropy of tokens", found, expected, rtol)
    yield reference.close("loss of texts", found.sum(1), values["loss"], rtol)


def _entropy(given: Scores, log_score: Tensor, x0: Tensor, xt: Tensor, sigma: Tensor, rate: Tensor) -> Tensor:
    """redraft's score entropy of every token [B, L]."""
    spec = given.spec.with_tokens(vocab_size=log_score.shape[-1], mask_id=log_score.shape[-1] - 1)
    if not given.absorbs:
        return uniform_score_entropy(spec, log_score, x0, xt, sigma, rate)
    odds = torch.expm1(sigma.double())
    f = log_score.double() + odds.log()[:, None, None] + math.log(spec.tokens.vocab_size - 1)
    return score_entropy(spec, f, x0, xt, rate.double() / odds)


def _graph(reference: Reference, given: Scores) -> Iterator[Check]:
    """Rates, transitions and losses with a small vocabulary."""
    values = reference.tensors("graph")
    i, x0, score, sigma = values["i"], values["x0"], values["score"], values["sigma"][:, 0]
    size, close = score.shape[-1], {"rtol": 1e-5, "atol": 1e-6}
    rates, moved = given.rates(size), given.transition(size, sigma)
    each = torch.arange(len(i))[:, None]
    yield reference.close("rates", rates[i], values["rate"], **close)
    yield reference.close("transposed rates", rates.T[i], values["transp_rate"], **close)
    yield reference.close("transposed transitions", moved.mT[each, i], values["transp_transition"], **close)
    if "transition" in values:
        yield reference.close("transitions", moved[each, i], values["transition"], **close)
    yield reference.close("reverse rates", given.reverse(i, score), values["reverse_rate"], **close)
    back = torch.linalg.inv(given.transition(size, values["dsigma"][:, 0]))  # exp(-dsigma Q)
    staggered = torch.einsum("bls,bst->blt", score.double(), back)
    yield reference.close("staggered scores", staggered, values["staggered_score"], 1e-4, 1e-5)
    log_score = values["log_score"].scatter(-1, i[..., None], 0.0)  # SEDD does not read that of the current token
    found = _entropy(given, log_score, x0, i, sigma, torch.ones(len(i)))
    yield reference.close("score entropy of given scores", found, values["score_entropy"].clamp(min=0), 2e-4, 1e-5)


def _probabilities(given: Scores, kind: str, x: Tensor, t: Tensor, dt: Tensor) -> Tensor:
    """Distribution [B, L, V] of one reverse step from t [B]: analytic, the last (denoiser), or Euler's, which may be
    negative."""
    sigma = given.sigma(t)
    log_score = given.log_score(x, sigma)
    if kind == "euler":
        own = F.one_hot(x, log_score.shape[-1]).double()
        return own + (dt.double() * given.rate(t))[:, None, None] * given.reverse(x, log_score.exp())
    then = torch.zeros_like(sigma) if kind == "denoiser" else given.sigma(t - dt)
    return given.leap(log_score, x, sigma, then)


def _steps(reference: Reference, given: Scores) -> Iterator[Check]:
    values = reference.tensors("sampler_steps")
    x, t, dt = values["x"], values["t"][:, 0], values["dt"]
    for kind in ("euler", "analytic", "denoiser"):
        found, expected = _probabilities(given, kind, x, t, dt), values[f"{kind}.probs"].double()
        found = found[..., : expected.shape[-1]]
        if kind != "euler":
            expected = expected.clamp(min=0)
            expected = expected / expected.sum(-1, keepdim=True)
        if given.absorbs and kind == "denoiser":  # recorded without a column for the mask; used at masks only
            at = x == given.spec.tokens.mask_id
            found, expected = found[at] / found[at].sum(-1, keepdim=True), expected[at]
        yield reference.close(f"one step, {kind}", found, expected, 1e-3, 1e-5)


def _runs(reference: Reference, given: Scores) -> Iterator[Check]:
    """SEDD's loop with the recorded draws and redraft's steps."""
    for kind in ("euler", "analytic"):
        values = reference.tensors(f"sampler_run_{kind}")
        x, steps = values["start"], sum(name.startswith("draws.") for name in values) - 1
        times, dt = torch.linspace(1, 1e-5, steps + 1), torch.tensor([(1 - 1e-5) / steps])
        for turn in range(steps + 1):
            step = kind if turn < steps else "denoiser"
            draws = values[f"draws.{turn}"]
            p = _probabilities(given, step, x, times[turn : turn + 1], dt)
            x = exponential_race(p[..., : draws.shape[-1]], draws)
        yield reference.same(f"sampling by {kind} steps, recorded draws", x.tolist(), values["ids"].tolist())


SUITE = Suite(checks, {"*/model.uniform": "the draws from which xt was computed"})
