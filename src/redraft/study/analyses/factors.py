"""What drives a loss of quality: the length of the answer, or the number of denoising steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation import stats
from redraft.evaluation.stats import Interval
from redraft.metrics import Array, Metric
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally, by_task, everything
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number


@dataclass(frozen=True)
class Factors(Analysis):
    """A grid of answer length by steps. Every cell is the difference from autoregression on the same rows.

    Rows are cut into ``groups`` of equally many by the tokens of their reference. The effect of length is the
    difference on the shortest group minus that on the longest, at the largest number of steps; the effect of steps is
    the quality at the largest number of steps minus that at ``few`` steps, mean over groups. Both are in points,
    positive if more length, or fewer steps, lose quality.
    """

    metric: str = ""
    few: int = 8  # steps that are compared with the most
    groups: int = 4
    margin: float = 2.0  # points by which one effect must exceed the other

    def rule(self) -> str:
        return (
            f"The claim holds if the effect of length exceeds that of using {self.few} steps in place of the most by "
            f"more than {self.margin:g} points (lower end of the 95 % interval of the difference), in part if the "
            f"effect of length alone is above 0; it is not seen otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return everything(of, found, self.metric, reference=False)

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task, metric, theirs in by_task(of, found, tally, self.metric):
            lengths = np.array([item.tokens for item in scores.items(of, found, task)])
            parts = np.array_split(np.argsort(lengths, kind="stable"), self.groups)
            names = tuple(f"{lengths[part].min()} to {lengths[part].max()} tokens" for part in parts)
            for model in of.others(task):
                tried = sorted(
                    (scores.scored(of, found, one, task, metric) for one in of.ways(model, task)),
                    key=lambda one: one.way.steps,
                )
                for one in tried:
                    values = [_against(one, theirs, part) for part in parts]
                    places = [float(np.median(lengths[part])) for part in parts]
                    marks = tuple(Mark(x, v.value, v.low, v.high) for x, v in zip(places, values, strict=True))
                    tally.lines.append(Line(f"{task}: {one.way.label}", marks))
                    tally.rows.append((task, one.way.label, *map(scores.signed, values)))
                length, steps, gap = self._effects(tried, theirs, parts, metric)
                tally.told.append(
                    f"{model} on {task}: length {scores.signed(length)} points, {self.few} steps "
                    f"{scores.signed(steps)} points, difference {scores.signed(gap)}"
                )
                tally.numbers += [
                    Number(task, model, "", name, value.value, value.low, value.high, len(theirs.stats))
                    for name, value in (("effect of length", length), ("effect of steps", steps))
                ]
                more = gap.low > self.margin
                tally.decide(task, "holds" if more else "in part" if length.low > 0 else "not seen")
        axis = f"{metric.label} against autoregression"
        figure = tally.drawn("Difference by length and steps", "curves", "tokens of the reference", axis)
        return tally.finding(tally.verdict("worst"), axis, ("task", "system", *names), figure)

    def _effects(
        self, tried: Sequence[Scored], theirs: Scored, parts: Sequence[Array], metric: Metric
    ) -> tuple[Interval, Interval, Interval]:
        """The effect of length, that of steps, and their difference, bootstrapped over the rows of each group."""
        most = tried[-1]
        few = min(tried, key=lambda one: (abs(one.way.steps - self.few), one.way.steps))
        rng, sign = np.random.default_rng(0), metric.better or 1
        draws: dict[str, list[float]] = {"length": [], "steps": []}
        for number in range(500):
            picked = [part if number == 0 else rng.choice(part, len(part)) for part in parts]
            values = {
                key: np.array([_mean(one.stats[:, rows], metric) for rows in picked])
                for key, one in (("most", most), ("few", few), ("ar", theirs))
            }
            against = sign * (values["most"] - values["ar"])
            draws["length"].append(float(against[0] - against[-1]))
            draws["steps"].append(float(np.mean(sign * (values["most"] - values["few"]))))
        length, step = (np.array(draws[key]) for key in ("length", "steps"))
        return _interval(length), _interval(step), _interval(length - step)


def _against(one: Scored, theirs: Scored, rows: Array) -> Interval:
    return stats.compare(
        one.stats[:, rows], theirs.stats[:, rows], one.metric.combine, 1.0, one.metric.better or 1, resamples=500
    ).difference


def _mean(values: Array, metric: Metric) -> float:
    return float(np.mean(metric.combine(values.sum(1))))


def _interval(draws: Array) -> Interval:
    """The first value, which is that of the rows as they are, with the percentiles of the others."""
    low, high = np.percentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high))
