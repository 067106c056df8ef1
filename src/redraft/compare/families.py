"""Families over all of their settings: parallelism, cost at equal quality, quality at equal cost, sensitivity."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from redraft import models
from redraft.compare.measurements import Measurements
from redraft.compare.results import EqualQuality, FamilySummary, SweptPoint
from redraft.compare.select import Selected
from redraft.evaluation import stats
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.envelope import Envelope, better_everywhere, explained
from redraft.evaluation.matching import best_within, least_cost
from redraft.evaluation.parallelism import aup, aup_draws, tokens_per_pass
from redraft.evaluation.stats import LEVEL, Interval
from redraft.evaluation.texts import GenerationRun
from redraft.metrics import Array

RESAMPLES = 500
SAME_PASSES = 0.05  # relative difference of forward passes up to which settings are matched


@dataclass(frozen=True)
class _Swept:
    """The settings of a family on the test items. Quality is better if higher."""

    settings: list[DecodingConfig]
    values: Array  # [S]
    draws: Array  # [S, R] in bootstrap resamples
    seeds: list[list[float]]  # by setting and training seed
    tokens: Array  # [S] per forward pass
    costs: dict[str, Array]  # [S] of a text, by name


def operations(runs: Sequence[GenerationRun]) -> float:
    """Counted operations of some runs of one setting, in FLOP."""
    cost = models.empty(runs[0].shape, "shape").forward_cost()
    counts = {name: sum(one.work[name] for one in runs) for name in runs[0].work if name != "passes"}
    return cost.of_counts(**counts, timed_rows=sum(sum(one.nfe) for one in runs))


def summarise(measured: Measurements, selected: Mapping[str, Selected]) -> tuple[FamilySummary, ...]:
    """A summary of every family that was measured; empty without a metric that has a better direction."""
    if not measured.primary.better or measured.study.baseline not in selected:
        return ()
    swept = {family: found for family in measured.study.families if (found := _swept(measured, family)) is not None}
    if measured.study.baseline not in swept:
        return ()
    return tuple(_summary(measured, family, swept, selected) for family in swept)


def _swept(measured: Measurements, family: str) -> _Swept | None:
    metric = measured.primary
    found = {
        name: statistics
        for name, setting in measured.settings.items()
        if setting.family == family and (statistics := measured.statistics("test", name, metric)) is not None
    }
    if not found:
        return None
    runs = [[one.run for one in measured.texts_of("test", name)] for name in found]
    texts, tokens, ended, passes = (
        [sum(count(run) for run in several) for several in runs]
        for count in (
            lambda run: len(run.texts),
            lambda run: sum(run.tokens),
            lambda run: run.finished,
            lambda run: sum(run.nfe),
        )
    )
    costs = {
        "passes": np.array(passes) / texts,
        "operations": np.array([operations(several) for several in runs]) / texts,
        **_seconds(measured, list(found)),
    }
    sign, combine = measured.primary.better, metric.combine
    return _Swept(
        settings=[measured.settings[name] for name in found],
        values=np.array([sign * stats.point(one, combine) for one in found.values()]),
        draws=np.stack([sign * stats.resampled(one, combine, resamples=RESAMPLES) for one in found.values()]),
        seeds=[[float(sign * combine(seed.sum(0))) for seed in one] for one in found.values()],
        tokens=np.array([tokens_per_pass(*one) for one in zip(tokens, ended, passes, strict=True)]),
        costs=costs,
    )


def _seconds(measured: Measurements, names: Sequence[str]) -> dict[str, Array]:
    """Median seconds of a text at batch 1, if all settings were timed at it."""
    single = next((timing for timing in measured.timings_by_batch() if timing.batch == 1), None)
    calls = [None if single is None else single.of(name) for name in names]
    if not names or any(one is None for one in calls):
        return {}
    return {"seconds": np.array([float(np.median(one.seconds)) for one in calls if one is not None])}


def _summary(
    measured: Measurements, family: str, swept: Mapping[str, _Swept], selected: Mapping[str, Selected]
) -> FamilySummary:
    ours, theirs = swept[family], swept[measured.study.baseline]
    sign = measured.primary.better
    envelope = Envelope.of([float(value) for value in sign * ours.values])
    low, high = (envelope.low, envelope.high) if sign > 0 else (envelope.high, envelope.low)
    shares = explained(ours.values.tolist(), [dict(one.options) for one in ours.settings])
    factor = max(shares, key=shares.__getitem__) if shares else ""
    claim = better_everywhere(*_matched(ours, theirs)) if family != measured.study.baseline else None
    return FamilySummary(
        family=family,
        settings=len(ours.settings),
        low=low,
        median=envelope.median,
        high=high,
        factor=factor,
        explained=shares.get(factor, 0.0),
        points=tuple(SweptPoint(float(x), float(sign * y)) for x, y in zip(ours.tokens, ours.values, strict=True)),
        parallelism=_parallelism(measured, ours, swept),
        at_equal_quality=_at_equal_quality(measured, ours, theirs),
        at_equal_cost=_at_equal_cost(ours, theirs, selected[measured.study.baseline].best, sign),
        matched=0 if claim is None else claim.matched,
        better=None if claim is None else claim.share,
        better_everywhere=claim is not None and claim.holds,
    )


def _parallelism(measured: Measurements, ours: _Swept, swept: Mapping[str, _Swept]) -> Interval | None:
    """Accuracy under parallelism, for metrics in per cent that are better if higher."""
    best = max(float(one.values.max()) for one in swept.values())
    if measured.primary.better < 0 or best <= 0 or np.isnan(ours.tokens).any():
        return None
    value = aup(ours.tokens.tolist(), ours.values.tolist(), best)
    best_draws = np.max([one.draws.max(0) for one in swept.values()], axis=0)
    draws = aup_draws(ours.tokens.tolist(), ours.draws, best_draws)
    low, high = np.percentile(draws, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    return Interval(value, min(float(low), value), max(float(high), value))


def _at_equal_quality(measured: Measurements, ours: _Swept, theirs: _Swept) -> dict[str, EqualQuality | None]:
    """The least cost of each kind at which the baseline's best quality is reached, less the margin."""
    target, target_draws, found = float(theirs.values.max()), theirs.draws.max(0), dict[str, EqualQuality | None]()
    for name, costs in ours.costs.items():
        one = least_cost(costs, ours.values, ours.draws, target, target_draws, measured.margin)
        if one is None:
            found[name] = None
            continue
        found[name] = EqualQuality(ours.settings[one.setting].id, one.cost, one.low, one.high, one.reached)
    return found


def _at_equal_cost(ours: _Swept, theirs: _Swept, best: str, sign: int) -> dict[str, Interval | None]:
    """The best quality within what the baseline's best setting costs."""
    names = [one.id for one in theirs.settings]
    found: dict[str, Interval | None] = {}
    for name, costs in ours.costs.items():
        if best not in names or name not in theirs.costs:
            continue
        one = best_within(costs, ours.values, ours.draws, float(theirs.costs[name][names.index(best)]))
        ends = None if one is None else sorted((sign * one.low, sign * one.high))
        found[name] = None if one is None or ends is None else Interval(sign * one.value, *ends)
    return found


def _matched(ours: _Swept, theirs: _Swept) -> tuple[dict[Hashable, list[float]], dict[Hashable, list[float]]]:
    """The qualities of pairs of settings with equal numbers of forward passes, by pair."""
    a: dict[Hashable, list[float]] = {}
    b: dict[Hashable, list[float]] = {}
    for i, mine in enumerate(ours.costs["passes"]):
        for j, other in enumerate(theirs.costs["passes"]):
            if abs(mine - other) <= SAME_PASSES * other:
                a[i, j], b[i, j] = ours.seeds[i], theirs.seeds[j]
    return a, b
