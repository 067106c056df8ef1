"""Quality by the length of the answer, with and without knowing the length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation import stats
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Figure, Finding, Line, Mark, Number, Sheet, Verdict


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
            f"length (95 % interval below -{self.margin:g}), in part if for some; it is not seen otherwise. "
            f"The buckets need {self.fewest} rows each. It is void where autoregression does not beat the trivial "
            "baselines."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task), *scores.validations(of, of.claim.reference, task)]
            wanted += [c for m in of.others(task) for way in of.ways(m, task) for c in of.texts(way, task)]
            if found.has(of.data(task), *scores.validations(of, of.claim.reference, task)):
                wanted += of.texts(self._reference(of, found, task), task)
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        rows, lines, numbers, reasons, drops = [], [], [], [], []
        for task in of.tasks:
            metric = scores.metric_of(of, found, task, self.metric)
            lengths = np.array([item.tokens for item in scores.items(of, found, task)])
            short = lengths < self.short
            if min(short.sum(), (~short).sum()) < self.fewest:
                reasons.append(f"{task} has {int(short.sum())} short answers and {int((~short).sum())} longer ones")
                continue
            theirs = scores.scored(of, found, self._reference(of, found, task), task, metric)
            reason = scores.void(of, found, task, theirs)
            reasons += [reason] if reason else []
            systems = [theirs] + [
                scores.scored(of, found, way, task, metric) for m in of.others(task) for way in of.ways(m, task)
            ]
            for one in systems:
                gap = None if one is theirs else self._interaction(one, theirs, short)
                if gap is not None and not reason:
                    drops.append((task, one, gap))
                rows.append(self._row(task, one, short, gap))
                lines.append(Line(f"{task}: {one.way.label}", tuple(_marks(one, lengths, self.fewest))))
                numbers += [*_numbers(one, short), one.number()]
        seen = [gap[2] < -self.margin for _, _, gap in drops]
        verdict: Verdict = "open" if not seen else "holds" if all(seen) else "in part" if any(seen) else "not seen"
        parts = [
            f"{one.way.label} on {task}: d is {gap[0]:+.1f} ({gap[1]:+.1f} to {gap[2]:+.1f}) points on short answers "
            "relative to long ones"
            for task, one, gap in drops
        ]
        under = f"under {self.short} tokens"
        label = scores.metric_of(of, found, of.tasks[0], self.metric).label
        columns = ("task", "system", f"{label}, {under}", f"{label}, longer", "d short - d long (95 % interval)")
        return Finding(
            verdict,
            f"{'; '.join(parts or reasons)}.",
            (Figure("Quality by answer length", "curves", "tokens of the reference (median)", label, tuple(lines)),),
            (Sheet("Short and long answers", columns, tuple(rows)),),
            tuple(numbers),
            tuple(reasons),
        )

    def _reference(self, of: Experiment, found: Found, task: str) -> Way:
        metric = scores.metric_of(of, found, task, self.metric)
        return scores.best(of, found, of.claim.reference, task, metric)

    def _interaction(self, ours: Scored, theirs: Scored, short: np.ndarray) -> tuple[float, float, float]:
        """Value and 95 % interval of d on short rows minus d on long rows; the buckets are independent samples."""
        found = []
        for number, rows in enumerate((short, ~short)):
            one = stats.compare(
                ours.stats[:, rows], theirs.stats[:, rows], ours.metric.combine, self.margin, seed=number
            )
            found.append(one.difference)
        value = found[0].value - found[1].value
        half = float(np.hypot(*((one.high - one.low) / 2 for one in found)))
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
