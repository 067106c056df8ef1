"""Scores of generated texts with their uncertainty, the choice of settings on validation rows, and void comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from redraft import models
from redraft.compare.format import plain
from redraft.data.examples import Example
from redraft.evaluation import stats
from redraft.evaluation.items import Item
from redraft.evaluation.scores import score
from redraft.evaluation.stats import Comparison, Interval
from redraft.metrics import Array, Metric
from redraft.metrics.bits_per_byte import BitsPerByte
from redraft.study.cells.base import Cell
from redraft.study.cells.data import items_of
from redraft.study.cells.texts import Texts
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Number
from redraft.tasks import Choice, infer_task

BITS = BitsPerByte()


@dataclass(frozen=True)
class Scored:
    """The quality of one way of decoding on a task, over all seeds, and the work it took."""

    way: Way
    task: str
    metric: Metric
    stats: Array  # [seeds, rows, k]
    passes: float  # forward passes a text
    tokens: float  # tokens a text
    flops: float  # counted operations a token

    @cached_property
    def interval(self) -> Interval:
        """The quality with its interval."""
        return stats.interval(self.stats, self.metric.combine)

    @property
    def value(self) -> float:
        """The quality, a positive number for better."""
        return (self.metric.better or 1) * stats.point(self.stats, self.metric.combine)

    def number(self) -> Number:
        """As a row of the store."""
        i = self.interval
        return Number(
            self.task, self.way.model, self.way.label, self.metric.name, i.value, i.low, i.high, len(self.stats)
        )

    def text(self) -> str:
        """``31.2 (29.8 to 32.5)``."""
        return spread(self.interval)


def spread(value: Interval, digits: int = 1) -> str:
    """A value with its interval."""
    return f"{value.value:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def signed(value: Interval, digits: int = 1) -> str:
    """A difference with its interval: ``-1.2 (-2.0 to -0.4)``."""
    return f"{value.value:+.{digits}f} ({value.low:+.{digits}f} to {value.high:+.{digits}f})"


def choice_of(of: Experiment, found: Found, task: str) -> Choice:
    """The kind of a task, with the metrics for its language."""
    key = ("choice", of.data(task).id)
    if key not in found.kept:
        value = found(of.data(task))
        rows = [Example(one.prompt, one.references[0], "") for one in items_of(value, "test")]
        found.kept[key] = infer_task(rows, value["task"])
    one: Choice = found.kept[key]
    return one


def metric_of(of: Experiment, found: Found, task: str, name: str = "") -> Metric:
    """A metric of a task; by default its first one."""
    metrics = choice_of(of, found, task).task.metrics()
    return next((one for one in metrics if one.name == name), metrics[0])


def items(of: Experiment, found: Found, task: str, part: str = "test") -> list[Item]:
    """The items of a task."""
    return items_of(found(of.data(task)), part)


def scored(of: Experiment, found: Found, way: Way, task: str, metric: Metric, part: str = "test") -> Scored:
    """The score of one way of decoding."""
    return of_texts(of, found, way, task, metric, of.texts(way, task, part))


def of_texts(of: Experiment, found: Found, way: Way, task: str, metric: Metric, texts: Sequence[Texts]) -> Scored:
    """The score of the texts of all seeds."""
    key = (metric.name, *(one.id for one in texts))
    if key not in found.kept:
        found.kept[key] = _scored(of, found, way, task, metric, texts)
    one: Scored = found.kept[key]
    return one


def _scored(of: Experiment, found: Found, way: Way, task: str, metric: Metric, texts: Sequence[Texts]) -> Scored:
    asked = items(of, found, task, texts[0].part)
    values = [found(one) for one in texts]
    made = np.stack([score(metric, value["texts"], asked).stats for value in values])
    cost = models.empty(values[0]["shape"], "shape").forward_cost()
    counts = {name: sum(value["work"][name] for value in values) for name in values[0]["work"] if name != "passes"}
    passes = sum(sum(value["nfe"]) for value in values)
    tokens = sum(sum(value["tokens"]) for value in values)
    rows = len(values) * len(asked)
    operations = cost.of_counts(**counts, timed_rows=passes)
    return Scored(
        way=way,
        task=task,
        metric=metric,
        stats=made,
        passes=passes / rows,
        tokens=tokens / rows,
        flops=operations / max(1, tokens),
    )


def compare(ours: Scored, theirs: Scored, margin: float) -> Comparison:
    """Our quality against theirs on the same rows; a positive difference means that ours is better."""
    return stats.compare(ours.stats, theirs.stats, ours.metric.combine, margin, ours.metric.better or 1)


def best(of: Experiment, found: Found, model: str, task: str, metric: Metric) -> Way:
    """The way of decoding a model that is best on validation rows; the cheaper of equal ones."""
    ways = of.ways(model, task)
    if len(ways) == 1:
        return ways[0]
    tried = [scored(of, found, way, task, metric, "validation") for way in ways]
    return max(tried, key=lambda one: (one.value, -one.flops)).way


def validations(of: Experiment, model: str, task: str) -> list[Cell]:
    """The cells from which ``best`` chooses: none if there is one way only."""
    ways = of.ways(model, task)
    return [cell for way in ways for cell in of.texts(way, task, "validation")] if len(ways) > 1 else []


def void(of: Experiment, found: Found, task: str, reference: Scored) -> str:
    """Why a comparison on a task would be void: the reference does not beat a trivial system. Empty: it does."""
    value, asked = found(of.trivial(task)), items(of, found, task)
    metric, sign = reference.metric, reference.metric.better or 1
    for name, texts in value["texts"].items():
        theirs = score(metric, texts, asked).stats[None]
        if stats.compare(reference.stats, theirs, metric.combine, 1e-9, sign).verdict != "better":
            own, other = reference.interval.value, stats.point(theirs, metric.combine)
            return (
                f"void on {task}: {reference.way.model} does not beat {name} ({metric.label} {plain(own)} against "
                f"{plain(other)})"
            )
    return ""


def bits(found: Found, cells: Sequence[Cell]) -> Array:
    """Statistics [seeds, rows, 2] of bits per byte from the likelihoods of all seeds."""
    return np.stack([BitsPerByte.of(found(one)["nats"], found(one)["bytes"]) for one in cells])
