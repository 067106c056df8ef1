"""Score entropy, its schedules and its analytic sampler against values recorded from the public code of SEDD and MDLM.

The recorded files are optional (see ``tests.tiny.golden``); tolerances are those their makers state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.geometric import Geometric
from redraft.noise.schedules.linear import Linear
from redraft.noise.uniform import Uniform as UniformNoise
from redraft.objectives.masked import Masked
from redraft.objectives.score import Score
from redraft.objectives.uniform import Uniform
from redraft.samplers.analytic import leap, revealing
from redraft.types import Batch, Spec
from tests.tiny import family, golden


@pytest.mark.parametrize("graph", ["absorb", "uniform"])
@pytest.mark.parametrize(
    ("name", "schedule"), [("loglinear", Linear(epsilon=1e-3)), ("geometric_1e-4_20", Geometric(1e-4, 20))]
)
def test_schedules(graph: str, name: str, schedule: Any) -> None:
    values = golden("sedd", graph, "goldens", "schedules.safetensors")
    t, alpha = values["t"].double(), (-values[f"{name}.total"].double()).exp()
    torch.testing.assert_close(schedule.alpha(t), alpha, rtol=1e-5, atol=3e-7)
    torch.testing.assert_close(-schedule.dalpha(t), values[f"{name}.rate"].double() * alpha, rtol=1e-5, atol=3e-7)


def spec_of(vocab_size: int, process: str, mask_id: int) -> Spec:
    """A model of scores over tokens that may all be predicted, but for a mask."""
    spec, _ = family("sedd", conditional=False, process=process)
    return replace(spec, vocab_size=vocab_size, mask_id=mask_id, forbidden=())


def singles(ids: Tensor) -> Batch:
    """Every token as a row of its own, so that nats come token by token."""
    column = ids.reshape(-1, 1)
    return Batch(
        column, torch.ones_like(column, dtype=torch.bool), torch.ones_like(column, dtype=torch.bool), None, column[:, 0]
    )


def each(row_values: Tensor, ids: Tensor) -> Tensor:
    """A value of each text, repeated for its tokens."""
    return row_values.reshape(-1, 1).expand(ids.shape).reshape(-1).double()


def uniform_nats(f: Tensor, x0: Tensor, xt: Tensor, sigma: Tensor, rate: Tensor) -> Tensor:
    """Our score entropy of every token."""
    size = f.shape[-1]
    # every token is allowed: the mask that a spec must name is outside the vocabulary
    spec, rows = spec_of(size + 1, "uniform", size), singles(x0)
    alpha, can = torch.exp(-each(sigma, x0)), torch.ones_like(rows.target)
    noisy = xt.reshape(-1, 1)
    asked = Uniform().request(rows, spec, can, noisy, torch.zeros_like(alpha), alpha, each(rate, x0))
    logits = torch.cat([f.reshape(-1, size), torch.zeros(f[..., 0].numel(), 1)], 1)
    return Score().loss(logits, Score().counted(asked, spec)).nats.view(x0.shape)


def test_uniform_score_entropy_of_given_scores() -> None:
    values = golden("sedd", "uniform", "goldens", "graph.safetensors")
    x0, xt = values["x0"], values["i"]
    f = values["log_score"].scatter(-1, xt[..., None], 0.0)  # theirs never reads the score of the token itself
    found = uniform_nats(f, x0, xt, values["sigma"], torch.ones(2))
    torch.testing.assert_close(found, values["score_entropy"].clamp(min=0), rtol=2e-4, atol=1e-5)


def test_uniform_loss_of_a_network() -> None:
    """Theirs computes 1 - n / (e^sigma - 1 + n) in single precision, which at light noise leaves it few digits."""
    values = golden("sedd", "uniform", "goldens", "model.safetensors")
    x0, sigma = values["x0"], values["sigma"]
    found = uniform_nats(values["log_score"], x0, values["xt"], sigma, values["dsigma"])
    expected = values["score_entropy_tokens"] * values["dsigma"][:, None]
    ratio = torch.expm1(sigma) / (torch.expm1(sigma) + 256)
    slack = 2e-4 + torch.finfo(torch.float32).eps / ratio[:, None]
    assert float(slack.min()) < 3e-4
    assert bool(((found - expected).abs() <= slack * expected.abs() + 1e-4).all())
    assert bool(((found.sum(1) - values["loss"]).abs() <= slack[:, 0] * values["loss"] + 1e-4).all())


@pytest.mark.parametrize("source", ["sedd", "mdlm"])
def test_absorbing_loss_of_a_network(source: str) -> None:
    if source == "sedd":
        values = golden("sedd", "absorb", "goldens", "model.safetensors")
        expected = values["score_entropy_tokens"] * values["dsigma"][:, None]
        log_score, sigma, rate = values["log_score"], values["sigma"].double(), values["dsigma"].double()
    else:
        values = golden("mdlm", "goldens", "losses.safetensors")
        expected, log_score = values["sedd.loss_tokens"], values["sedd.log_score"]
        alpha = Linear(epsilon=1e-3).alpha(values["t"].double())
        sigma, rate = -alpha.log(), (1 - 1e-3) / alpha
    x0, xt = values["x0"], values["xt"]
    f = log_score.double() + torch.expm1(sigma).log()[:, None, None] + math.log(256)
    spec, rows = spec_of(257, "absorbing", 256), singles(x0)
    hidden = (xt == 256).reshape(-1, 1)
    weight = each(rate / torch.expm1(sigma), x0)
    asked = Masked().request(rows, spec, hidden, weight, torch.zeros_like(weight))
    found = Score().loss(f[xt == 256].float(), Score().counted(asked, spec)).nats.view(x0.shape)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=1e-4)


def test_uniform_leap() -> None:
    """They draw from their staggered score times the chance of coming from each token in time dsigma."""
    values = golden("sedd", "uniform", "goldens", "graph.safetensors")
    spec = spec_of(8, "uniform", 0)
    gone = torch.exp(-values["dsigma"].double()).expand(values["i"].shape)
    transition = UniformNoise().marginal(torch.nn.functional.one_hot(values["i"], 8).double(), gone, spec)
    expected = (values["staggered_score"] * transition).clamp(min=0)
    own, sigma = values["i"].reshape(-1), each(values["sigma"], values["i"])
    before = sigma - each(values["dsigma"], values["i"])
    f = values["score"].reshape(-1, 8).double().log().log_softmax(1)
    found = leap(f, own, torch.exp(-sigma), torch.exp(-before), spec).softmax(1)
    expected = expected.reshape(-1, 8).double()
    torch.testing.assert_close(found, expected / expected.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)


def test_absorbing_leap_and_ancestral_step() -> None:
    """At t = 0.6, one eighth back: what a mask becomes, by scores and by predictions."""
    values = golden("mdlm", "goldens", "sampler_steps.safetensors")
    masked = values["x"] == 256
    schedule = Linear(epsilon=1e-3)
    t = values["t"].double()[:1, 0]
    now, then = schedule.alpha(t), schedule.alpha(t - values["dt"].double())
    spec = spec_of(257, "absorbing", 256)
    score = values["score"][masked][:, :256].double()
    log_z = (score * (1 - now) / now * 256).sum(1).log()  # logits f = log s - log w + log n
    chance = revealing(log_z, now.expand(len(score)), then.expand(len(score)), spec)
    probability = torch.cat([chance[:, None] * score / score.sum(1, keepdim=True), 1 - chance[:, None]], 1)
    torch.testing.assert_close(probability, values["analytic.probs"][masked].double(), rtol=1e-3, atol=1e-5)

    clean = torch.cat([score / score.sum(1, keepdim=True), torch.zeros(len(score), 1)], 1)
    mask = torch.full((len(score),), 256)
    found = Absorbing().posterior(mask, clean, then.expand(len(score)), now.expand(len(score)), spec)
    ddpm = values["ddpm.probs"][masked].double()
    torch.testing.assert_close(found, ddpm / ddpm.sum(1, keepdim=True), rtol=1e-3, atol=1e-5)


def test_uniform_transition() -> None:
    """Their matrix of going from one token to another in time sigma is our marginal."""
    values = golden("sedd", "uniform", "goldens", "graph.safetensors")
    spec = spec_of(8, "uniform", 0)
    clean = torch.nn.functional.one_hot(values["i"], 8).double()
    found = UniformNoise().marginal(clean, torch.exp(-values["sigma"].double()).expand(values["i"].shape), spec)
    torch.testing.assert_close(found, values["transition"].double(), rtol=1e-5, atol=1e-6)
