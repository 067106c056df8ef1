"""Laws of every noise schedule, and of the sampled times."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from redraft.errors import UserError
from redraft.noise.schedules.cosine import Cosine
from redraft.noise.schedules.exponential import Exponential
from redraft.noise.schedules.geometric import Geometric
from redraft.noise.schedules.linear import Linear
from redraft.noise.schedules.polynomial import Polynomial
from redraft.noise.schedules.sigmoid import Sigmoid
from redraft.objectives.shared import times as times
from redraft.registry import find, names

SCHEDULES = [find("noise.schedules", name)() for name in names("noise.schedules")] + [
    Linear(epsilon=1e-3),
    Cosine(power=2, epsilon=1e-3),
    Polynomial(power=0.5),
    Polynomial(power=3),
    Geometric(1e-3, 1.0),
    Sigmoid(-2.0, 4.0, 0.9),
    Exponential(1e-3, 20.0, 1.0),
]
each_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=str)


def grid(count: int = 401, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return torch.linspace(low, high, count, dtype=torch.float64)


@each_schedule
def test_clean_at_zero_and_noise_at_one_up_to_its_epsilon(schedule: Any) -> None:
    first, last = schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    assert 0 <= schedule.epsilon < 1
    assert 1 - first <= schedule.epsilon + 1e-12
    assert last <= schedule.epsilon + 1e-12


@each_schedule
def test_alpha_is_a_decreasing_probability(schedule: Any) -> None:
    for dtype in (torch.float64, torch.float32):
        alpha = schedule.alpha(grid().to(dtype))
        assert alpha.dtype == dtype
        assert bool(((alpha >= 0) & (alpha <= 1)).all())
        assert bool((alpha.diff() <= 0).all())
    assert bool((schedule.alpha(grid()).diff() < 0).all())


@each_schedule
def test_dalpha_is_the_derivative_of_alpha(schedule: Any) -> None:
    t, h = grid(low=0.01, high=0.99), 1e-5
    slope = (schedule.alpha(t + h) - schedule.alpha(t - h)) / (2 * h)
    torch.testing.assert_close(schedule.dalpha(t), slope, rtol=1e-6, atol=1e-8)


@each_schedule
def test_derivative_keeps_the_shape(schedule: Any) -> None:
    t = torch.rand(3, 2, generator=torch.Generator().manual_seed(0))
    assert schedule.alpha(t).shape == schedule.dalpha(t).shape == t.shape


@pytest.mark.parametrize(
    "wrong",
    [(Cosine, {"power": 0.5}), (Polynomial, {"power": 0}), (Geometric, {"sigma_min": 30}), (Sigmoid, {"tau": 0.0})],
)
def test_invalid_parameters_are_user_errors(wrong: Any) -> None:
    kind, fields = wrong
    with pytest.raises(UserError):
        kind(**fields)


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_times_have_low_discrepancy(n: int) -> None:
    """Star discrepancy of n stratified points is at most 2/n for every rotation."""
    generator = torch.Generator().manual_seed(n)
    for _ in range(50):
        t = times.continuous(n, generator).sort().values
        assert bool(((t > 0) & (t <= 1)).all())
        share = torch.arange(1, n + 1) / n
        assert float((share - t).abs().max()) <= 2 / n


def test_the_time_of_every_single_row_is_uniform() -> None:
    """Otherwise the short rows of a batch sorted by length would be trained on a single noise level."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([times.continuous(4, generator) for _ in range(4000)])
    for row in draws.T:
        counts = torch.histc(row, bins=10, min=0, max=1)
        chi_square = float(((counts - 400) ** 2 / 400).sum())
        assert chi_square < 27.9  # 99.9 % point at 9 degrees of freedom


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_discrete_times_are_uniform_on_the_grid(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    draws = torch.cat([times.discrete(5, steps, generator) for _ in range(1200)])
    number = draws * steps
    torch.testing.assert_close(number, number.round(), rtol=0, atol=1e-9)
    counts = torch.bincount(number.round().long(), minlength=steps + 1)
    assert counts[0] == 0 and len(counts) == steps + 1
    assert float((counts[1:] / 6000 - 1 / steps).abs().max()) < 0.02


def test_same_seed_same_times() -> None:
    a, b = (times.continuous(8, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b)
