"""How much more data one kind of model needs for the quality of another: learning curves over the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation.stats import Interval
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.texts import Texts
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Finding, Line, Mark, Verdict


@dataclass(frozen=True)
class DataNeeded(Analysis):
    """Models trained on shares of ``rows`` training rows, each for equally many passes and with the same tokenizer.

    The need of a model is the share at which its curve (linear between shares) reaches the reference's quality at
    100 %; it is infinite beyond the last share.
    """

    metric: str = ""
    rows: int = 8000  # training rows at 100 %
    shares: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0, 1.1)
    passes: float = 3.0
    least: float = 1.0  # the need that is claimed: between these shares
    most: float = 1.1

    def rule(self) -> str:
        return (
            f"The claim holds if the need of a model is above {self.least:.0%} and at most {self.most:.0%} of the data "
            "of autoregression (95 % interval over rows and seeds), in part if it is above 100 % (lower end of the "
            f"interval) by another amount; it is not seen otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task)]
            for model in of.models(task):
                for share in self.shares:
                    wanted += self._texts(of, model, task, share)
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task in of.tasks:
            metric = scores.metric_of(of, found, task, self.metric)
            curves: dict[str, list[Scored]] = {}
            for model in of.models(task):
                way = self._way(of, model, task)
                curves[model] = [
                    scores.of_texts(of, found, way, task, metric, self._texts(of, model, task, share))
                    for share in self.shares
                ]
                for share, one in zip(self.shares, curves[model], strict=True):
                    tally.rows.append((task, model, f"{share:.0%}", one.text()))
                    tally.numbers.append(one.number())
                marks = [_mark(share, one) for share, one in zip(self.shares, curves[model], strict=True)]
                tally.lines.append(Line(f"{task}: {model}", tuple(marks)))
            whole = curves[of.claim.reference][self.shares.index(1.0)]
            tally.mark(task, scores.void(of, found, task, whole))
            for model in of.others(task):
                need = self._need(curves[model], whole)
                tally.decide(task, self._verdict(need))
                tally.told.append(f"{model} on {task} needs {_percent(need)} of the data of autoregression")
        columns = ("task", "model", "training rows", metric.label)
        figure = tally.drawn("Quality by training data", "curves", "share of the training rows", metric.label)
        title = f"Quality by training data, 100 % are {self.rows:,} rows, {self.passes:g} passes"
        return tally.finding(tally.verdict("worst"), title, columns, figure)

    def _verdict(self, need: Interval) -> Verdict:
        if need.low <= 1.0:
            return "not seen"
        return "holds" if self.least < need.low and need.high <= self.most else "in part"

    def _way(self, of: Experiment, model: str, task: str) -> Way:
        return of.ways(model, task)[0]

    def _texts(self, of: Experiment, model: str, task: str, share: float) -> tuple[Texts, ...]:
        part = of.data(task, train_rows=round(share * self.rows), tokenizer_of=of.data(task))
        runs = of.of_all_seeds(model, task, data=part, tokens=0, passes=self.passes)
        return of.texts(self._way(of, model, task), task, trained=runs)

    def _need(self, curve: Sequence[Scored], whole: Scored) -> Interval:
        """The share with its interval, bootstrapped over rows and over the seeds of both."""
        rng = np.random.default_rng(0)
        seeds, rows = whole.stats.shape[:2]
        found = []
        for number in range(400):
            pick = np.arange(rows) if number == 0 else rng.integers(0, rows, rows)
            own = np.arange(seeds) if number == 0 else rng.integers(0, seeds, seeds)
            theirs = np.arange(seeds) if number == 0 else rng.integers(0, seeds, seeds)
            sign, combine = whole.metric.better or 1, whole.metric.combine
            goal = sign * float(np.mean(combine(whole.stats[theirs][:, pick].sum(1))))
            values = [sign * float(np.mean(combine(one.stats[own][:, pick].sum(1)))) for one in curve]
            found.append(crossing(self.shares, values, goal))
        low, high = np.percentile(np.minimum(found[1:], 1e9), [2.5, 97.5])
        return Interval(found[0], float(low), float(high))


def crossing(shares: Sequence[float], values: Sequence[float], goal: float) -> float:
    """The share at which a curve first reaches a goal, linear between its points; infinite if it never does."""
    for number, value in enumerate(values):
        if value >= goal:
            if number == 0:
                return shares[0]
            before = values[number - 1]
            part = (goal - before) / (value - before)
            return shares[number - 1] + part * (shares[number] - shares[number - 1])
    return float("inf")


def _mark(share: float, one: Scored) -> Mark:
    return Mark(share, one.interval.value, one.interval.low, one.interval.high)


def _percent(need: Interval) -> str:
    def text(value: float) -> str:
        return "more than all tried" if value > 1e6 else f"{value:.0%}"

    return f"{text(need.value)} ({text(need.low)} to {text(need.high)})"
