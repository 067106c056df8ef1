"""Laws of every forward process: ``corrupt`` samples from ``marginal``, and ``posterior`` is Bayes' rule."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from redraft.noise.base import Process
from redraft.registry import find, names
from redraft.types import Spec
from tests.tiny import VOCABULARY, family

# Processes on tokens; noise on vectors has separate laws (``test_continuous``).
PROCESSES = [find("noise", name)() for name in names("noise") if issubclass(find("noise", name), Process)]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=str)


@pytest.fixture
def spec() -> Spec:
    return family("masked")[0]


def clean(spec: Spec) -> Tensor:
    """One-hot rows [V', V] of the tokens that text may hold."""
    ids = torch.tensor([VOCABULARY.eos_id, *VOCABULARY.letters])
    return F.one_hot(ids, spec.tokens.vocab_size).double()


def each_state(spec: Spec) -> Tensor:
    return torch.arange(spec.tokens.vocab_size)


@each_process
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.9, 1.0])
def test_corrupt_samples_from_the_marginal(process: Process, alpha: float, spec: Spec) -> None:
    rows, generator = 4000, torch.Generator().manual_seed(1)
    for one_hot in clean(spec):
        ids = one_hot.argmax().expand(rows, 2).clone()
        can = torch.tensor([True, False]).expand(rows, 2)
        drawn = process.corrupt(ids, torch.full((rows,), alpha, dtype=torch.float64), can, spec, generator)
        assert torch.equal(drawn[:, 1], ids[:, 1]), "a position that noise may not change has changed"
        p = process.marginal(one_hot, torch.tensor(alpha, dtype=torch.float64), spec)
        share = torch.bincount(drawn[:, 0], minlength=spec.tokens.vocab_size) / rows
        error = (p * (1 - p) / rows).sqrt()
        assert bool(((share - p).abs() <= 4.5 * error + 1e-12).all())


@each_process
def test_alpha_may_differ_within_a_row(process: Process, spec: Spec) -> None:
    """alpha is 0 at one position and 1 at the other."""
    ids = torch.full((50, 2), VOCABULARY.letters[0])
    alpha = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(50, 2)
    drawn = process.corrupt(ids, alpha, torch.ones(50, 2, dtype=torch.bool), spec, torch.Generator().manual_seed(0))
    assert torch.equal(drawn[:, 1], ids[:, 1])
    assert bool((drawn[:, 0] != ids[:, 0]).any())


@each_process
def test_distributions_sum_to_one(process: Process, spec: Spec) -> None:
    s, t = torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.2, dtype=torch.float64)
    mixed = torch.rand(spec.tokens.vocab_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed[list(spec.tokens.forbidden)] = 0
    for start in [*clean(spec), mixed / mixed.sum()]:
        for p in (process.marginal(start, t, spec), process.prior(spec).double()):
            assert float(p.min()) >= 0 and float(p.sum()) == pytest.approx(1, abs=1e-12)
        reachable = process.marginal(start, t, spec) > 0
        p = process.posterior(each_state(spec), start, s, t, spec)[reachable]
        assert float(p.min()) >= 0
        torch.testing.assert_close(p.sum(-1), torch.ones(len(p), dtype=torch.float64))


@each_process
@pytest.mark.parametrize(("alpha_s", "alpha_t"), [(1.0, 0.6), (0.8, 0.3), (0.5, 0.0)])
def test_posterior_is_bayes_rule(process: Process, alpha_s: float, alpha_t: float, spec: Spec) -> None:
    """q(x_s | x_t, x_0) q(x_t | x_0) = q(x_t | x_s) q(x_s | x_0), where q(x_t | x_s) is the process at a_t / a_s.

    Summed over x_t this is the marginal at the earlier time.
    """
    s, t = (torch.tensor(a, dtype=torch.float64) for a in (alpha_s, alpha_t))
    states = torch.eye(spec.tokens.vocab_size, dtype=torch.float64)
    step = process.marginal(states, t / s, spec)  # [x_s, x_t]
    for start in clean(spec):
        marginal_s, marginal_t = process.marginal(start, s, spec), process.marginal(start, t, spec)
        posterior = process.posterior(each_state(spec), start, s, t, spec)  # [x_t, x_s]
        joint = posterior * marginal_t[:, None]
        torch.testing.assert_close(joint, (marginal_s[:, None] * step).T)
        torch.testing.assert_close(joint.sum(0), marginal_s)


@each_process
def test_the_marginal_at_alpha_zero_is_the_prior(process: Process, spec: Spec) -> None:
    for start in clean(spec):
        end = process.marginal(start, torch.tensor(0.0, dtype=torch.float64), spec)
        torch.testing.assert_close(end, process.prior(spec).double())
