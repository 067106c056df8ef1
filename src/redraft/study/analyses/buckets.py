"""Quality by the length of the answer, with and without knowing the length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation import stats
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally, by_task, everything
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number


@dataclass(frozen=True)
class Buckets(Analysis):
    """The difference from autoregression on short answers against that on long ones.

    An *interaction* is tested: (ours - theirs) on short rows minus (ours - theirs) on long rows, bootstrapped over rows
    within each bucket and over seeds. Rows are sorted into buckets by the tokens of their reference, which no model
    knows. The quality of a bucket is compared between systems on the same rows, so that short texts, which are easier
    or harder to score, count alike for all.
    """

    metric: str = ""
    margin: float = 2.0  # in units of the metric
    short: int = 20  # answers of fewer tokens are short
    fewest: int = 20  # rows of a bucket

    def rule(self) -> str:
        return (
            "Let d be the difference from autoregression, in points. The claim holds if d on answers under "
            f"{self.short} tokens is below d on longer ones by more than the margin for every way of finding the "
            f"length (95 % interval below -{self.margin:g}), in part if for some; it is not seen otherwise. Both "
            f"groups need {self.fewest} rows. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return everything(of, found, self.metric, reference=False)

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task, metric, theirs in by_task(of, found, tally, self.metric):
            lengths = np.array([item.tokens for item in scores.items(of, found, task)])
            short = lengths < self.short
            sizes = int(short.sum()), int((~short).sum())
            if min(sizes) < self.fewest:
                tally.reasons.append(f"{task} has {sizes[0]} short answers and {sizes[1]} longer ones")
                continue
            ways = [way for model in of.others(task) for way in of.ways(model, task)]
            for one in [theirs, *(scores.scored(of, found, way, task, metric) for way in ways)]:
                gap = None if one is theirs else self._interaction(one, theirs, short)
                if gap is not None:
                    tally.decide(task, "holds" if gap[2] < -self.margin else "not seen")
                    tally.told.append(
                        f"{one.way.label} on {task}: d is {gap[0]:+.1f} ({gap[1]:+.1f} to {gap[2]:+.1f}) points on "
                        "short answers relative to long ones"
                    )
                tally.rows.append(self._row(task, one, short, gap))
                tally.lines.append(Line(f"{task}: {one.way.label}", tuple(_marks(one, lengths, self.fewest))))
                tally.numbers += _numbers(one, short)
        label = metric.label
        last = "d short - d long (95 % interval)"
        columns = ("task", "system", f"{label}, under {self.short} tokens", f"{label}, longer", last)
        figure = tally.drawn("Quality by answer length", "curves", "tokens of the reference (median)", label)
        return tally.finding(tally.verdict("all"), "Short and long answers", columns, figure)

    def _interaction(self, ours: Scored, theirs: Scored, short: np.ndarray) -> tuple[float, float, float]:
        """Value and 95 % interval of d on short rows minus d on long rows; the buckets are independent samples."""
        found = []
        for number, rows in enumerate((short, ~short)):
            one = stats.compare(
                ours.stats[:, rows], theirs.stats[:, rows], ours.metric.combine, self.margin, seed=number
            )
            found.append(one.difference)
        value = found[0].value - found[1].value
        half = math.hypot(*((one.high - one.low) / 2 for one in found))
        return value, value - half, value + half

    def _row(
        self, task: str, one: Scored, short: np.ndarray, gap: tuple[float, float, float] | None
    ) -> tuple[str, ...]:
        cells = [scores.spread(stats.interval(one.stats[:, rows], one.metric.combine)) for rows in (short, ~short)]
        last = "reference" if gap is None else f"{gap[0]:+.1f} ({gap[1]:+.1f} to {gap[2]:+.1f})"
        return (task, one.way.label, *cells, last)


def _marks(one: Scored, lengths: np.ndarray, fewest: int) -> list[Mark]:
    """Quality in four groups of rows with equally many each, by length."""
    groups = min(4, len(lengths) // fewest)
    marks = []
    for rows in np.array_split(np.argsort(lengths, kind="stable"), max(1, groups)):
        value = stats.interval(one.stats[:, rows], one.metric.combine, resamples=500)
        marks.append(Mark(float(np.median(lengths[rows])), value.value, value.low, value.high))
    return marks


def _numbers(one: Scored, short: np.ndarray) -> list[Number]:
    found = []
    for name, rows in (("short", short), ("long", ~short)):
        v = stats.interval(one.stats[:, rows], one.metric.combine)
        metric = f"{one.metric.name}, {name} answers"
        found.append(Number(one.task, one.way.model, one.way.label, metric, v.value, v.low, v.high, len(one.stats)))
    return found
