"""Schedules, times and losses against values recorded from the public code of MDLM, BD3-LM and LLaDA.

The recorded files are optional (see ``tests.tiny.golden``); tolerances are those their makers state.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft.noise.schedules.cosine import Cosine
from redraft.noise.schedules.geometric import Geometric
from redraft.noise.schedules.linear import Linear
from redraft.noise.schedules.polynomial import Polynomial
from redraft.objectives._times import stratify
from redraft.objectives.masked import Masked
from redraft.types import Batch, Spec
from tests.tiny import family, golden


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("loglinear", Linear(epsilon=1e-3)),
        ("cosine", Cosine(epsilon=1e-3)),
        ("cosinesqr", Cosine(power=2, epsilon=1e-3)),
        ("geometric_1e-3_1", Geometric(1e-3, 1.0)),
    ],
)
def test_mdlm_schedules(name: str, schedule: Any) -> None:
    """Theirs are sigma = -log alpha and its rate -alpha'/alpha; what they call linear is linear in sigma.

    Compared as alpha and alpha': at t = 1, where alpha is 1e-3, single precision leaves the quotient no five digits.
    """
    values = golden("mdlm", "goldens", "schedules.safetensors")
    t, alpha = values["t"].double(), (-values[f"{name}.total"].double()).exp()
    torch.testing.assert_close(schedule.alpha(t), alpha, rtol=1e-5, atol=3e-7)
    torch.testing.assert_close(-schedule.dalpha(t), values[f"{name}.rate"].double() * alpha, rtol=1e-5, atol=3e-7)


@pytest.mark.parametrize(
    ("name", "schedule"), [("loglinear", Linear()), ("square", Polynomial(2)), ("square_root", Polynomial(0.5))]
)
def test_bd3lm_schedules(name: str, schedule: Any) -> None:
    """Theirs are the chance of a mask, at least 1e-3, and the weight alpha'/(1 - alpha)."""
    values = golden("bd3lm", "goldens", "schedules.safetensors")
    t = values["t"].double()
    masked = (1 - schedule.alpha(t)).clamp(min=1e-3)
    expected = values[f"{name}.move_chance"].double()
    torch.testing.assert_close(masked, expected, rtol=1e-5, atol=1e-7)
    expected = values[f"{name}.loss_scale"].double()
    torch.testing.assert_close(schedule.dalpha(t) / masked, expected, rtol=1e-5, atol=1e-6)


def test_mdlm_low_discrepancy_times() -> None:
    """Theirs are squeezed into [1e-3, 1]."""
    values = golden("mdlm", "goldens", "losses.safetensors")
    found = stratify(values["antithetic.uniform"]) * (1 - 1e-3) + 1e-3
    torch.testing.assert_close(found, values["antithetic.t"], rtol=1e-6, atol=1e-6)


def plain_batch(ids: Tensor, target: Tensor, prompt: Tensor | None = None) -> Batch:
    return Batch(ids, target, torch.ones_like(target), prompt, target.sum(1))


def plain_spec(vocab_size: int, mask_id: int, schedule: Any) -> Spec:
    """A model that never predicts its mask, and may predict everything else."""
    spec, _ = family("masked", conditional=False)
    return replace(spec, vocab_size=vocab_size, mask_id=mask_id, forbidden=(), schedule=schedule)


@pytest.mark.parametrize("name", ["subs.nelbo_tokens", "subs_timecond.nelbo_tokens", "subs_T1000.loss_tokens"])
def test_mdlm_losses(name: str) -> None:
    """The bound of rows with a given time, masks and network output; continuous, time conditioned, and at T = 1000."""
    values = golden("mdlm", "goldens", "losses.safetensors")
    output = golden("mdlm", "goldens", "logits.safetensors")
    logits = output["logits_sigma" if "timecond" in name else "logits_sigma0"]
    x0, xt, t = values["x0"], values["xt"], values["t"].double()
    objective, spec = Masked(), plain_spec(257, 256, Linear(epsilon=1e-3))
    if "T1000" in name:
        objective, t = Masked(steps=1000), (values["t"] * 1000).int() / 1000 + torch.tensor(1 / 1000)
    hidden = xt == 256
    batch = plain_batch(x0, torch.ones_like(hidden))
    prepared = objective.request(batch, spec, hidden, objective.rate(spec, t), t)
    assert torch.equal(prepared.ask.x, xt)
    found = objective.loss(logits[prepared.ask.want >= 0], prepared)
    torch.testing.assert_close(found.nats, values[name].sum(1), rtol=2e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, values[name].mean(), rtol=2e-4, atol=1e-4)


def test_llada_likelihood_of_one_masking() -> None:
    """A recorded masking: per-token cross-entropies weighted by 1 / share masked, summed, mean of four rows."""
    values = golden("llada", "goldens", "likelihood.safetensors")
    x0, xt, share = values["fixed_seq"], values["fixed_noisy"], values["fixed_p_mask"]
    hidden = xt == 514
    target = torch.zeros_like(hidden)
    target[:, len(values["prompt"]) :] = True
    objective, spec = Masked(), plain_spec(528, 514, Linear())
    prepared = objective.request(plain_batch(x0, target), spec, hidden, 1 / share[:, -1], share[:, -1])
    # logits that give the recorded cross-entropy: p of the answer, and the rest shared by one other token
    nll = values["fixed_token_ce"][hidden]
    logits = torch.full((len(nll), 528), -math.inf)
    logits[torch.arange(len(nll)), prepared.target] = -nll
    other = torch.where(prepared.target == 0, 1, 0)
    logits[torch.arange(len(nll)), other] = torch.log(-torch.expm1(-nll.double())).float()
    found = objective.loss(logits, prepared)
    torch.testing.assert_close(found.nats.mean(), values["fixed_loss"].squeeze(), rtol=1e-4, atol=0)
    assert torch.equal(prepared.ask.x, xt)
