"""Choices that a study makes on validation rows only: dropout rates and the settings that are reported on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from redraft.compare.measurements import Measurements, TrainingRun
from redraft.evaluation import stats


@dataclass(frozen=True)
class Selected:
    """The settings of a family that are reported on; they may be the same."""

    best: str  # highest primary metric
    fast: str  # lowest median latency at the smallest batch size, among those within the margin of the best

    def roles(self, name: str) -> tuple[Literal["best", "fast"], ...]:
        """What a setting was selected as."""
        roles: tuple[tuple[Literal["best", "fast"], str], ...] = (("best", self.best), ("fast", self.fast))
        return tuple(role for role, selected in roles if selected == name)


def select_settings(measured: Measurements) -> dict[str, Selected]:
    """The best and the fast setting of each family. Families without any text are left out."""
    metric, found = measured.primary, {}
    latency = _latencies(measured)
    for family in measured.study.families:
        values = {}
        for name, setting in measured.settings.items():
            statistics = measured.statistics("validation", name, metric)
            if setting.family == family and statistics is not None:
                values[name] = (metric.better or 1) * stats.point(statistics, metric.combine)
        if not values:
            continue
        best = max(values, key=values.__getitem__)
        close = [name for name, value in values.items() if value >= values[best] - measured.margin]
        found[family] = Selected(best, min(close, key=lambda name: latency.get(name, float("inf"))))
    return found


def selected_names(selected: Mapping[str, Selected]) -> list[str]:
    """Ids of all selected settings, each once, in the order of the families."""
    return list(dict.fromkeys(name for one in selected.values() for name in (one.best, one.fast)))


def select_dropout(runs: Sequence[TrainingRun], family: str) -> float | None:
    """The dropout rate with the fewest bits per byte on validation rows, mean over seeds.

    A rate at which a seed failed loses against rates with more seeds. None if no run of the family was validated.
    """
    bits: dict[float, list[float]] = {}
    for run in runs:
        if run.family == family and run.validation is not None:
            bits.setdefault(run.dropout, []).append(run.validation.bits_per_byte)
    return min(bits, key=lambda rate: (-len(bits[rate]), sum(bits[rate]))) if bits else None


def mark_kept(runs: Sequence[TrainingRun], dropouts: Mapping[str, float]) -> list[TrainingRun]:
    """The runs; those of a family that has a selected rate, but not at that rate, are marked as not kept."""
    return [replace(run, kept=run.dropout == dropouts.get(run.family, run.dropout)) for run in runs]


def _latencies(measured: Measurements) -> dict[str, float]:
    """Median seconds of each setting at the smallest batch size that was timed."""
    timings = measured.timings_by_batch()
    return {entry.id: float(np.median(entry.seconds)) for entry in timings[0].entries} if timings else {}
