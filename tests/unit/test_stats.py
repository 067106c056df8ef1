"""Intervals, paired tests and equivalence: against brute force, symmetry, and coverage on data with a known truth."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from redraft.evaluation import stats
from redraft.metrics.ngram_similarity import NgramSimilarity

Array = np.ndarray


def mean(total: Array) -> Array:
    """Combine of (value, 1) statistics."""
    return total[..., 0] / total[..., 1]


def rows(values: Array) -> Array:
    """Values [..., rows] -> statistics [..., rows, 2]."""
    return np.stack([values, np.ones_like(values)], axis=-1)


def test_interval_of_a_mean_matches_theory() -> None:
    values = np.random.default_rng(0).normal(10, 2, 400)
    found = stats.interval(rows(values), mean, resamples=8000)
    error = values.std() / np.sqrt(400)
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_randomisation_equals_enumeration() -> None:
    draw = np.random.default_rng(3)
    a, b = draw.normal(0.6, 1, 10), draw.normal(0, 1, 10)
    observed = abs((a - b).mean())
    signs = np.array(list(itertools.product([1, -1], repeat=10)))
    exact = float((np.abs((signs * (a - b)).mean(1)) >= observed - 1e-12).mean())
    found = stats.randomisation(rows(a), rows(b), mean, resamples=20000)
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 20000))


def test_comparison_is_symmetric() -> None:
    draw = np.random.default_rng(1)
    a, b = rows(draw.normal(0.3, 1, (3, 80))), rows(draw.normal(0, 1, (3, 80)))
    one, other = stats.compare(a, b, mean, margin=0.2), stats.compare(b, a, mean, margin=0.2)
    turned = stats.compare(a, b, mean, margin=0.2, better=-1)
    assert one.difference.value == pytest.approx(-other.difference.value)
    assert one.p_difference == pytest.approx(other.p_difference)
    flip = {"better": "worse", "worse": "better", "same": "same", "undecided": "undecided"}
    assert other.verdict == flip[one.verdict] == turned.verdict
    assert turned.difference.low == pytest.approx(-one.difference.high)


@pytest.mark.parametrize(
    "shift, margin, verdict",
    [(1.0, 0.1, "better"), (-1.0, 0.1, "worse"), (0.0, 0.5, "same"), (0.0, 0.001, "undecided")],
)
def test_verdict_of_known_cases(shift: float, margin: float, verdict: str) -> None:
    draw = np.random.default_rng(2)
    base = draw.normal(0, 3, 300)  # rows differ much more than systems do: only a paired test can see it
    noise = draw.normal(0, 0.5, 300)
    noise -= noise.mean()
    assert stats.compare(rows(base + shift + noise), rows(base), mean, margin).verdict == verdict


def test_a_small_real_difference_inside_the_margin_is_the_same() -> None:
    base = np.random.default_rng(4).normal(0, 1, 200)
    found = stats.compare(rows(base + 0.1), rows(base), mean, margin=0.5)
    assert found.verdict == "same" and found.difference.low > 0


def test_identical_systems() -> None:
    base = rows(np.random.default_rng(5).normal(0, 1, 50))
    found = stats.compare(base, base, mean, margin=0.1)
    assert (found.verdict, found.p_difference, found.difference.value) == ("same", 1.0, 0.0)


def test_no_evidence_is_undecided_never_same() -> None:
    draw = np.random.default_rng(6)
    found = stats.compare(rows(draw.normal(0, 5, 8)), rows(draw.normal(0, 5, 8)), mean, margin=0.5)
    assert found.verdict == "undecided"


def test_one_seed_is_preliminary_and_seeds_widen_the_interval() -> None:
    draw = np.random.default_rng(7)
    base = draw.normal(0, 1, 100)
    seeds = np.stack([base - 1, base, base + 1])
    one = stats.compare(rows(base), rows(base), mean, 0.5)
    three = stats.compare(rows(seeds), rows(np.stack([base] * 3)), mean, 0.5)
    assert one.preliminary and not three.preliminary
    assert three.difference.high - three.difference.low > 1.0
    assert three.verdict == "undecided"


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_coverage_of_the_difference(seeds: int) -> None:
    """A 95 % interval holds the truth about 95 % of the time, with seed effects as large as the row noise."""
    draw, hits, trials = np.random.default_rng(8), 0, 200
    for trial in range(trials):
        base = draw.normal(0, 2, 60)
        spread = 0.0 if seeds == 1 else 0.15
        a = base + 0.3 + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, 1, (seeds, 60))
        b = base + draw.normal(0, spread, (seeds, 1)) + draw.normal(0, 1, (seeds, 60))
        hits += stats.compare(rows(a), rows(b), mean, 0.1, seed=trial, resamples=300).difference.contains(0.3)
    assert 0.90 <= hits / trials <= 1.0


def test_equivalence_is_seldom_claimed_at_the_margin() -> None:
    """A true difference of exactly the margin is called the same in about 5 % of studies, not more."""
    draw, claims, trials = np.random.default_rng(9), 0, 300
    for trial in range(trials):
        base = draw.normal(0, 2, 80)
        a = base + 0.3 + draw.normal(0, 1, 80)
        found = stats.compare(rows(a), rows(base), mean, 0.3, seed=trial, resamples=300)
        claims += found.verdict == "same"
    assert claims / trials <= 0.09


def test_holm_by_hand() -> None:
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert stats.holm([]) == []


def test_wrong_use_is_refused() -> None:
    a = rows(np.zeros(4))
    with pytest.raises(ValueError, match="different rows"):
        stats.compare(a, rows(np.zeros(5)), mean, 0.1)
    with pytest.raises(ValueError, match="margin"):
        stats.compare(a, a, mean, 0.0)


def test_the_interval_of_a_biased_metric_holds_its_value() -> None:
    """Likeness of two bodies of text falls in every resample; its interval must not lie beside its value."""
    draw = np.random.default_rng(10)
    texts = [" ".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), 40)) for _ in range(60)]
    score = NgramSimilarity().score(texts[:30], texts[30:])
    found = stats.interval(score.stats, NgramSimilarity().combine, resamples=200)
    assert found.low < found.value < found.high
