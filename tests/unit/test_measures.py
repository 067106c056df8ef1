"""Measures of decoding: golden values worked out by hand, and laws. No model is run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from redraft.evaluation import stats
from redraft.evaluation.energy import Counter, EnergyMeter
from redraft.evaluation.envelope import Envelope, better_everywhere, explained
from redraft.evaluation.frontier import Frontier, FrontierPoint, at_entropy
from redraft.evaluation.matching import best_within, least_cost
from redraft.evaluation.parallelism import aup, aup_draws, tokens_per_pass
from redraft.metrics.accuracy import Accuracy

# ---- accuracy under parallelism, tokens per pass


@pytest.mark.parametrize(
    ("quality", "best", "expected"),
    [
        ((80, 79, 76), 80, 299.552345),
        ((80, 79, 76), 90, 238.445336),
        ((80, 80, 80), 80, 320),
        ((80, 79, 74), 80, 158.046179),  # the last point is dropped
    ],
)
def test_accuracy_under_parallelism(quality: tuple[float, ...], best: float, expected: float) -> None:
    assert aup((1, 2, 4), quality, best) == pytest.approx(expected, abs=1e-6)
    shuffled = aup((4, 1, 2), (quality[2], quality[0], quality[1]), best)
    assert shuffled == pytest.approx(expected, abs=1e-6)


def test_one_point_is_its_tokens_times_its_quality_and_rivals_only_lower_it() -> None:
    assert aup((3,), (50,), 90) == 150
    assert aup((1, 3), (70, 70), 70) > aup((1, 3), (70, 70), 80) > aup((1, 3), (70, 70), 90)
    with pytest.raises(ValueError, match="AUP"):
        aup((), (), 80)
    draws = aup_draws((1, 2), np.array([[80.0, 60.0], [79.0, 60.0]]), np.array([80.0, 60.0]))
    assert draws == pytest.approx([aup((1, 2), (80, 79), 80), aup((1, 2), (60, 60), 60)])


def test_tokens_per_pass_count_the_end_of_text() -> None:
    assert tokens_per_pass(tokens=9 + 4, ended=1, passes=10 + 4) == 1  # autoregression: one row ended, one was cut
    assert math.isnan(tokens_per_pass(0, 0, 0))


# ---- cost at equal quality, quality at equal cost


def of_rows(right: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Values and draws of settings from the rows that each gets right."""
    scores = [np.array([[row, 1.0] for row in rows]) for rows in right]
    combine = Accuracy().combine
    values = np.array([stats.point(one, combine) for one in scores])
    return values, np.stack([stats.resampled(one, combine, resamples=300) for one in scores])


def test_the_cheapest_setting_within_the_margin_is_found() -> None:
    values, draws = of_rows([[1] * 50 + [0] * 50, [1] * 80 + [0] * 20, [1] * 81 + [0] * 19])
    costs = np.array([1.0, 4.0, 16.0])
    found = least_cost(costs, values, draws, 81.0, draws[2], 2.0)
    assert found is not None and (found.cost, found.setting) == (4.0, 1)
    assert found.low <= found.cost <= found.high and found.reached == 1
    exact = least_cost(costs, values, draws, 81.0, draws[2], 0.0)
    assert exact is not None and exact.cost == 16.0
    assert least_cost(costs[:1], values[:1], draws[:1], 81.0, draws[2], 2.0) is None  # not reached is an answer
    within = best_within(costs, values, draws, 4.0)
    assert within is not None and within.value == pytest.approx(80) and within.low <= 80 <= within.high
    assert best_within(costs, values, draws, 0.5) is None


def test_a_method_costs_what_it_costs_at_its_own_quality() -> None:
    values, draws = of_rows([[1, 0] * 40, [1, 1] * 30 + [0] * 20])
    found = least_cost(np.array([1.0, 2.0]), values, draws, float(values.max()), draws.max(0), 1e-9)
    assert found is not None and found.cost == 2.0 and found.reached == 1


def test_resamples_of_equal_systems_are_equal() -> None:
    rows = np.array([[row % 3 == 0, 1.0] for row in range(60)], dtype=float)
    one, other = (stats.resampled(rows, Accuracy().combine, seed=5, resamples=50) for _ in range(2))
    assert (one == other).all() and one.std() > 0


# ---- sensitivity to settings


def test_a_copy_is_not_better_and_a_constant_is() -> None:
    draw = np.random.default_rng(0)
    scores = {setting: list(draw.normal(50, 3, 3)) for setting in range(8)}
    copy = better_everywhere(scores, scores)
    assert copy is not None and not copy.holds and copy.share == 0
    more = better_everywhere({key: [one + 10 for one in values] for key, values in scores.items()}, scores)
    assert more is not None and more.holds and more.share == 1 and more.matched == 24
    assert better_everywhere(scores, {"another": [1.0]}) is None


def test_what_explains_the_differences() -> None:
    factors = [{"steps": steps, "order": order, "id": (steps, order)} for steps in (2, 8) for order in ("a", "b", "c")]
    found = explained([10 * one["steps"] for one in factors], factors)  # type: ignore[operator]
    assert found == {"steps": pytest.approx(1), "order": pytest.approx(0)}
    both = explained([one["steps"] + "abc".index(str(one["order"])) for one in factors], factors)  # type: ignore
    assert sum(both.values()) == pytest.approx(1)  # an additive table
    assert explained([1, 1], [{"x": 1}, {"x": 2}]) == {}
    assert Envelope.of([3, 1, 2]) == Envelope(1, 2, 3)


# ---- perplexity against entropy


def test_curves_are_compared_at_equal_entropy() -> None:
    points = [FrontierPoint(1.0, 3.0, 8.0), FrontierPoint(0.5, 1.0, 4.0)]
    assert at_entropy(points, 6.0) == pytest.approx(2.0) and at_entropy(points, 4.0) == 1.0
    assert at_entropy(points, 9.0) is None
    human = FrontierPoint(None, 2.5, 7.0)
    assert Frontier.of("judge", points, human).at_human_entropy == pytest.approx(2.5)


# ---- energy


def test_energy_is_read_where_it_is_reported(tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    part = tmp_path / "intel-rapl:0:0"
    for folder, used in ((package, 900), (part, 5)):
        folder.mkdir()
        (folder / "name").write_text(f"{folder.name}\n")
        (folder / "max_energy_range_uj").write_text("1000\n")
        (folder / "energy_uj").write_text(f"{used}\n")
    with EnergyMeter(torch.device("cpu"), tmp_path) as meter:
        (package / "energy_uj").write_text("100\n")  # wrapped: 201 microjoules
    found = meter.energy(tokens=3)
    assert found is not None and found.joules == pytest.approx(201e-6) and found.source == "rapl: intel-rapl:0"
    assert found.joules_per_token == pytest.approx(67e-6)
    with EnergyMeter(torch.device("cpu"), tmp_path / "nothing") as meter:
        pass
    assert meter.energy(3) is None


def test_a_counter_adds_up_over_readings() -> None:
    readings = iter((5, 9, 2, 4))
    counter = Counter("x", lambda: next(readings), 2.0, wraps=9)
    for _ in range(3):
        counter.update()
    assert counter.total == 2.0 * (4 + 3 + 2)
