"""Mixture: several tasks at once, each with its own metrics, and the mean of their first metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np

from redraft.metrics import Array, Metric, References, Score
from redraft.tasks import DataProfile, Task


@dataclass(frozen=True)
class Mixture:
    """The task of data from ``data.sources.mix``."""

    parts: tuple[tuple[str, Task], ...] = ()  # name of each part, and its task

    summary = "several tasks: the mean of their first metrics, and the metrics of each"
    margin = 1.0  # points of the mean

    def metrics(self) -> list[Metric]:
        each = [OfTask(name, metric) for name, task in self.parts for metric in task.metrics()]
        return [MeanOfTasks([OfTask(name, task.metrics()[0]) for name, task in self.parts]), *each]

    def match(self, data: DataProfile) -> tuple[float, str]:
        return 0.0, ""  # the rows of a mixture name their tasks


@dataclass
class OfTask(Metric):
    """A metric on the rows of one task; rows of other tasks add nothing."""

    task: str
    metric: Metric

    def __post_init__(self) -> None:
        self.name, self.label = f"{self.task}/{self.metric.name}", f"{self.task}: {self.metric.label}"
        self.better = self.metric.better

    @property
    def signature(self) -> str:
        """That of the metric."""
        return f"{self.name}|{self.metric.signature}"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        return self.metric.statistics(hypotheses, references)

    def combine(self, total: Array) -> Array:
        return self.metric.combine(total)

    def score(
        self,
        hypotheses: Sequence[str],
        references: References,
        tasks: Sequence[str] = (),
        values: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """As ``Metric.score``; ``tasks`` holds the task of each row.

        Raises:
            ValueError: no row is of the task.
        """
        mine = [row for row, task in enumerate(tasks) if task == self.task]
        if not mine:
            raise ValueError(f"no row is of task '{self.task}'")
        own = [values[row] for row in mine] if values else ()
        found = self.metric.score([hypotheses[row] for row in mine], [references[row] for row in mine], (), own)
        stats, rows = np.zeros((len(hypotheses), found.stats.shape[1])), np.zeros(len(hypotheses))
        stats[mine], rows[mine] = found.stats, found.rows
        return Score(found.value, rows, stats)


class MeanOfTasks(Metric):
    """The mean over tasks of one metric each, as multi-task benchmarks report it (GLUE, arXiv:1804.07461).

    Raises:
        ValueError: a metric where lower is better.
    """

    name, label = "mean", "mean of tasks"

    def __init__(self, parts: Sequence[OfTask]) -> None:
        self.parts = list(parts)
        if any(part.better < 0 for part in parts):
            raise ValueError("the mean of tasks needs metrics where higher is better")

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        raise NotImplementedError("statistics depend on each row's task: use score")

    @cached_property
    def _ends(self) -> list[int]:
        """The last column of each part's statistics."""
        return list(accumulate(part.statistics(["a"], [["a"]]).shape[1] for part in self.parts))

    def combine(self, total: Array) -> Array:
        begins = [0, *self._ends[:-1]]
        values = [
            part.combine(total[..., begin:end]) for part, begin, end in zip(self.parts, begins, self._ends, strict=True)
        ]
        return np.asarray(np.mean(values, axis=0))

    def score(
        self,
        hypotheses: Sequence[str],
        references: References,
        tasks: Sequence[str] = (),
        values: Sequence[Mapping[str, Any]] = (),
    ) -> Score:
        """As ``Metric.score``; ``tasks`` holds the task of each row."""
        found = [part.score(hypotheses, references, tasks, values) for part in self.parts]
        stats = np.concatenate([score.stats for score in found], 1)
        return Score(float(self.combine(stats.sum(0))), np.sum([score.rows for score in found], 0), stats)
