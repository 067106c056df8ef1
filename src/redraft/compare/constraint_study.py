"""The chosen settings under the study's constraint: how many texts are valid, and what that costs.

Quality is similarity to references. A constraint can be judged by it only if the references satisfy the constraint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from redraft.compare.measurements import GeneratedTexts, Measurements
from redraft.compare.results import (
    BothWays,
    ConstrainedSetting,
    ConstrainedSpeed,
    ConstraintStudy,
    Ratio,
    ShortDifference,
    Verdict,
)
from redraft.compare.select import Selected, selected_names
from redraft.constraints import satisfied
from redraft.evaluation import stats
from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.items import Item
from redraft.evaluation.scores import score
from redraft.evaluation.timing import Speed, ratio_interval
from redraft.metrics import Array, divide

FEWEST = 5.0  # per cent of references that must satisfy the constraint for a verdict under it


def summarise(measured: Measurements, selected: Mapping[str, Selected]) -> ConstraintStudy | None:
    """The selected settings with and without the constraint; None if the study has none."""
    constraint = measured.study.constraint
    if not constraint:
        return None
    own = selected.get(measured.study.baseline)
    baseline = own.best if own is not None else ""
    rows = []
    for name in selected_names(selected):
        free, under = measured.texts_of("test", name), measured.texts_of("test", name, constrained=True)
        seeds = {one.seed for one in free} & {one.seed for one in under}
        if seeds:
            both = [[one for one in part if one.seed in seeds] for part in (free, under)]
            rows.append(_row(measured, measured.settings[name], both[0], both[1], baseline))
    share = share_satisfied(constraint, measured.test, measured.data.paired)
    return ConstraintStudy(dict(constraint), share, share < FEWEST, tuple(rows))


def share_satisfied(constraint: Mapping[str, str], items: Sequence[Item], paired: bool) -> float:
    """Per cent of items whose first reference satisfies a constraint.

    Args:
        paired: the items' token counts include end-of-text, which a length constraint doesn't count.
    """
    tokens = [item.tokens - paired for item in items]
    return 100.0 * float(np.mean(satisfied(constraint, [item.references[0] for item in items], tokens)))


def _row(
    measured: Measurements,
    setting: DecodingConfig,
    free: list[GeneratedTexts],
    under: list[GeneratedTexts],
    baseline: str,
) -> ConstrainedSetting:
    metric = measured.primary
    without, with_it = _statistics(measured, free), _statistics(measured, under)
    rival = measured.texts_of("test", baseline, constrained=True) if setting.id != baseline else []
    change = against = None
    if metric.better:
        change = _difference(measured, with_it, without)
        against = _difference(measured, with_it, _statistics(measured, rival)) if rival else None
    return ConstrainedSetting(
        setting=setting.id,
        label=setting.label,
        family=setting.family,
        seeds=len(under),
        valid=BothWays(*(stats.interval(_valid(measured, part), _percentage) for part in (free, under))),
        quality=BothWays(*(stats.interval(part, metric.combine) for part in (without, with_it))),
        nfe_without=_mean_nfe(free),
        nfe_under=_mean_nfe(under),
        change=change,
        against_baseline=against,
        speed=tuple(_speeds(measured, setting.id)),
    )


def _mean_nfe(texts: Sequence[GeneratedTexts]) -> float:
    return float(np.mean([count for one in texts for count in one.run.nfe]))


def _statistics(measured: Measurements, texts: Sequence[GeneratedTexts]) -> Array:
    """[seeds, rows, k] of the primary metric."""
    return np.stack([score(measured.primary, one.texts, measured.test).stats for one in texts])


def _valid(measured: Measurements, texts: Sequence[GeneratedTexts]) -> Array:
    """[seeds, rows, 2]: whether each text satisfies the constraint, and 1."""
    valid = [satisfied(measured.study.constraint, one.texts, one.run.tokens) for one in texts]
    return np.stack([np.stack([np.asarray(one, dtype=float), np.ones(len(one))], 1) for one in valid])


def _percentage(total: Array) -> Array:
    return 100.0 * divide(total[..., 0], total[..., 1])


def _difference(measured: Measurements, ours: Array, theirs: Array) -> ShortDifference:
    metric = measured.primary
    found = stats.compare(ours, theirs, metric.combine, measured.margin, metric.better)
    around = found.difference
    return ShortDifference(around.value, around.low, around.high, cast(Verdict, found.verdict))


def _speeds(measured: Measurements, name: str) -> list[ConstrainedSpeed]:
    """Latency under the constraint at each batch size, and as a multiple of the latency without."""
    found = []
    constrained = measured.study.constraint
    for timing in measured.timings_by_batch(constrained=True):
        free, under = timing.of(name), timing.of(constrained_config(measured.settings[name], constrained).id)
        if free is not None and under is not None:
            speed = Speed(timing.batch, list(under.seconds), list(under.tokens))
            slowdown = Ratio(*ratio_interval(free.seconds, under.seconds))
            found.append(ConstrainedSpeed(timing.batch, speed.percentile(50), speed.percentile(95), slowdown))
    return found


def constrained_config(setting: DecodingConfig, constraint: Mapping[str, str]) -> DecodingConfig:
    """The same setting under a constraint."""
    return replace(setting, constraint=dict(constraint))
