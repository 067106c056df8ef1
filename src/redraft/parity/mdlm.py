"""Parity of MDLM (kuleshov-group/mdlm)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from redraft.model import Model
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.cosine import Cosine
from redraft.noise.schedules.exponential import Exponential
from redraft.noise.schedules.geometric import Geometric
from redraft.noise.schedules.linear import Linear
from redraft.objectives.masked import Masked
from redraft.objectives.shared.times import stratify
from redraft.parity.outputs import (
    exponential_race,
    logits,
    masked_nll,
    model_logits,
    per_token,
    schedules,
    score_entropy,
)
from redraft.parity.reference import Check, Reference, Suite
from redraft.samplers.analytic import reveal_probability
from redraft.types import Schedule, Spec


def checks(reference: Reference) -> Iterator[Check]:
    """Logits, schedules, losses, reverse steps and sampling."""
    model, values = reference.load(), reference.tensors("logits")
    noisy, t = values["xt"], values["t"]
    yield reference.close("logits", model_logits(model, noisy), values["logits_sigma0"])
    timed = _time_conditioned(model.network)
    conditioned = logits(timed, noisy, model.spec.network.attention, 0, t)
    yield reference.close("logits, with time conditioning", conditioned, values["logits_sigma"])
    raw = _trainer_weights(reference.folder / "checkpoint" / "trainer.ckpt", model)
    yield reference.close("logits, weights without averaging", raw(noisy), values["logits_sigma0_raw_weights"])
    spec = model.spec
    yield from _schedules(reference, spec, values)
    yield from _losses(reference, model, conditioned)
    step = reference.tensors("sampler_steps")
    t, dt, at = step["t"][:, 0], step["dt"], step["x"] == spec.tokens.mask_id
    for name, most in (("ddpm", 1 - _EPS), ("ddpm_cache", 1.0)):  # recorded unnormalised; used at masks only
        found = _reverse(model, step["x"], 1 - t * most, 1 - (t - dt) * most) * (t * most)[:, None, None]
        yield reference.close(f"one reverse step, {name}", found[at], step[f"{name}.probs"][at], 1e-3, 1e-5)
    yield from _leaps(reference, spec, step)
    run = reference.tensors("sampler_run")
    for name in ("ddpm", "ddpm_cache"):
        yield reference.same(
            f"sampling, {name}, recorded draws",
            _mdlm_run(model, run[f"{name}.draws"], name),
            run[f"{name}.ids"].tolist(),
        )


_EPS = 1e-3  # of MDLM's log-linear schedule


def _time_conditioned(network: Any) -> Any:
    """The same network with time conditioning."""
    made = type(network)(replace(network.config, noise="linear"))
    made.load_state_dict(network.state_dict())
    return made.eval()


def _trainer_weights(file: Path, model: Model) -> Callable[[Tensor], Tensor]:
    """Logits of the network with the weights of a trainer's checkpoint (those without averaging)."""
    import copy

    from redraft.convert.shared import dit

    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    network = copy.deepcopy(model.network)
    own = dict(network.named_parameters())
    for name, place in dit.layout(network.config, "backbone.").places.items():
        place.view(own[place.name]).data.copy_(state[name])
    return lambda ids: logits(network, ids, model.spec.network.attention, 0)


def _reverse(model: Model, x: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """q(x_s | x_t) [B, L, V] of the process, with the model's prediction for the clean text."""
    spec = model.spec
    p = model_logits(model, x).index_fill(2, torch.tensor(spec.tokens.forbidden), -torch.inf).softmax(-1)
    return Absorbing().posterior(x, p, alpha_s[:, None].expand(x.shape), alpha_t[:, None].expand(x.shape), spec)


def _mdlm_run(model: Model, draws: Tensor, name: str) -> list[list[int]]:
    """MDLM's loop with our posterior: all ids are sampled at once, by exponential races with the recorded numbers."""
    steps, width, _ = draws.shape
    x = torch.full((1, width), model.spec.tokens.mask_id)
    times = torch.linspace(1, 1e-5, steps + 1)
    stride = (1 - 1e-5) / steps
    for turn in range(steps):
        t = times[turn : turn + 1]
        q = _reverse(model, x, 1 - t * (1 - _EPS), 1 - (t - stride) * (1 - _EPS))
        drawn = exponential_race(q, draws[turn])
        x = torch.where(x == model.spec.tokens.mask_id, drawn, x)
    final = model_logits(model, x).index_fill(2, torch.tensor(model.spec.tokens.forbidden), -torch.inf).argmax(-1)
    found: list[list[int]] = torch.where(x == model.spec.tokens.mask_id, final, x).tolist()
    return found


def _schedules(reference: Reference, spec: Spec, drawn: Mapping[str, Tensor]) -> Iterator[Check]:
    ours: dict[str, Schedule] = {
        "loglinear": Linear(_EPS),
        "cosine": Cosine(epsilon=_EPS),
        "cosinesqr": Cosine(power=2, epsilon=_EPS),
        "geometric_1e-3_1": Geometric(1e-3, 1.0),
        "linear_1e-4_20": Exponential(1e-4, 20.0, 1.0),
    }
    yield from schedules(reference, reference.tensors("schedules"), ours)
    t, (low, high) = drawn["t"].double(), (_EPS, 1.0)
    alpha = ours["loglinear"].alpha(t)
    yield reference.close("probability of a mask", 1 - alpha, drawn["move_chance"], 1e-5, 1e-6)
    times = reference.tensors("losses")
    stratified = stratify(times["antithetic.uniform"]) * (high - low) + low  # recorded times are in [1e-3, 1]
    yield reference.close("stratified times", stratified, times["antithetic.t"], 1e-6, 1e-6)


def _losses(reference: Reference, model: Model, conditioned: Tensor) -> Iterator[Check]:
    """Every loss of MDLM, for the same noise."""
    values, losses = reference.tensors("logits"), reference.tensors("losses")
    spec, clean, noisy, t = model.spec, losses["x0"], losses["xt"], losses["t"].double()
    at, output, alpha = noisy == spec.tokens.mask_id, model_logits(model, noisy), Linear(_EPS).alpha(t)
    loose = {"rtol": 2e-4, "atol": 1e-4}
    rate = (1 - _EPS) / (1 - alpha)  # -alpha' / (1 - alpha)
    yield reference.close("weight of the bound", rate, values["dsigma"] / torch.expm1(values["sigma"]), 1e-5)
    steps = 1000
    later = (losses["t"] * steps).int() / steps + torch.tensor(1 / steps)  # on a grid of T times, MDLM uses the next
    grid = Masked(steps=steps).rate(spec.with_family(schedule=Linear(_EPS)), later.double())
    even = torch.full_like(rate, -math.log(-math.expm1(-_EPS)))  # uniform in log(1 - alpha): a constant weight
    for name, made, weight in (
        ("subs.nelbo_tokens", output, rate),
        ("subs_timecond.nelbo_tokens", conditioned, rate),
        ("subs_T1000.loss_tokens", output, grid),
        ("subs_cov.loss_tokens", output, even),
        ("subs_is.loss_tokens", output, even),
    ):
        nats, each = masked_nll(spec, made, noisy, clean, weight)
        expected = losses[name]
        yield reference.close(f"bound of tokens, {name.split('.')[0]}", each * weight[:, None], expected, **loose)
        yield reference.close(f"bound of texts, {name.split('.')[0]}", nats, expected.sum(1), **loose)
    letters = [i for i in range(spec.tokens.vocab_size) if i != spec.tokens.mask_id]
    log_p = output.index_fill(2, torch.tensor(spec.tokens.mask_id), -torch.inf).log_softmax(-1)
    yield reference.close("log-probabilities", log_p[at][:, letters], losses["subs.log_probs"][at][:, letters])
    plain = output.log_softmax(-1)
    yield reference.close("log-probabilities, mask included", plain, losses["d3pm.log_probs"])
    at_clean = model_logits(model, clean)  # for a text without noise
    reconstruction = -at_clean.log_softmax(-1).gather(2, clean[..., None])[..., 0]
    yield reference.close("reconstruction, D3PM", reconstruction, losses["d3pm.reconstruction_tokens"], **loose)
    p = (plain.exp().double(), log_p.exp().double())
    unmasked = -at_clean.index_fill(2, torch.tensor(spec.tokens.mask_id), -torch.inf).log_softmax(-1)
    last = (reconstruction, unmasked.gather(2, clean[..., None])[..., 0])
    for number, name in enumerate(("d3pm_T1000", "d3pm_subsmask_T1000")):
        found = _kl(spec, clean, noisy, p[number], later.double(), steps) + last[number]
        yield reference.close(f"loss, {name}", found, losses[f"{name}.loss_tokens"], **loose)
    f = losses["sedd.log_score"].double() + (1 / alpha - 1).log()[:, None, None] + math.log(spec.tokens.vocab_size - 1)
    entropy = score_entropy(spec.with_tokens(forbidden=()), f, clean, noisy, (1 - _EPS) / (1 - alpha))
    yield reference.close("score entropy", entropy, losses["sedd.loss_tokens"], **loose)


def _kl(spec: Spec, clean: Tensor, noisy: Tensor, p: Tensor, t: Tensor, steps: int) -> Tensor:
    """T KL(q(x_s | x_t, x_0) || q(x_s | x_t, x_0 ~ p)) [B, L], with s = t - 1/T and alpha = 1 - t."""
    a_t, a_s = (1 - x[:, None].expand(clean.shape) for x in (t, t - 1 / steps))
    one = torch.nn.functional.one_hot(clean, spec.tokens.vocab_size).double()
    true, predicted = (Absorbing().posterior(noisy, x, a_s, a_t, spec) for x in (one, p))
    return steps * torch.where(true > 0, true * (true / predicted).log(), 0.0).sum(-1)


def _leaps(reference: Reference, spec: Spec, step: Mapping[str, Tensor]) -> Iterator[Check]:
    """The distribution of a masked token for given scores, after one step of time and after the last."""
    at = step["x"] == spec.tokens.mask_id
    schedule, t = Linear(_EPS), step["t"].double()[:, 0]
    now, then = (per_token(schedule.alpha(x), step["x"])[at.flatten()] for x in (t, t - step["dt"].double()))
    letters = [i for i in range(spec.tokens.vocab_size) if i != spec.tokens.mask_id]
    score = step["score"][at][:, letters].double()
    p = score / score.sum(1, keepdim=True)
    log_z = (score.sum(1) * (1 - now) / now * len(letters)).log()  # logits f = log s - log w + log n
    chance = reveal_probability(log_z, now, then, spec.with_tokens(forbidden=()))[:, None]
    expected = step["analytic.probs"][at][:, [*letters, spec.tokens.mask_id]]
    yield reference.close("one analytic step", torch.cat([chance * p, 1 - chance], 1), expected, 1e-3, 1e-5)
    last = step["denoiser.probs"][at][:, letters].double()
    yield reference.close("the last step", p, last / last.sum(1, keepdim=True), 1e-3, 1e-5)


_TIMES = "times from importance sampling: redraft samples them uniformly, and the bound is the same"
SUITE = Suite(
    checks,
    {
        "schedules.loglinear.importance_t": _TIMES,
        "schedules.loglinear.sigma_min_max": _TIMES,
        "logits.x0": "the same as in losses.safetensors",
        "logits.uniform": "the draws from which xt was computed",
    },
)
