"""The fewest steps with the quality of the best: how many forward passes a text needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally, by_task, everything
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark


@dataclass(frozen=True)
class Saturation(Analysis):
    """Quality against denoising steps, for every task and sampler.

    The best number of steps of a sampler is that with the highest value on the test rows; a smaller number is enough
    if it is equal to it at the margin (two one-sided paired tests), or better.
    """

    metric: str = ""  # empty: the first of the task
    margin: float = 1.0  # in units of the metric
    most: int = 20  # steps within which the claim is about

    def rule(self) -> str:
        return (
            f"A number of forward passes is enough if an equivalence test at a margin of {self.margin:g} against the "
            f"best number passes, or it is better. The claim holds if at most {self.most} passes are enough for every "
            f"sampler and task, in part if for some. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return everything(of, found, self.metric, reference=False)

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task, metric, theirs in by_task(of, found, tally, self.metric):
            for name, tried in self._by_sampler(of, found, task, metric).items():
                top = max(tried, key=lambda one: one.value)
                few = next(one for one in tried if self._equal(one, top))
                tally.decide(task, "holds" if few.passes <= self.most else "not seen")
                tally.told.append(
                    f"{name} on {task}: {few.passes:.1f} passes ({few.text()}) are enough, the best of those tried "
                    f"takes {top.passes:.1f} ({top.text()})"
                )
                tally.lines.append(Line(f"{task}: {name}", tuple(map(_mark, tried))))
                tally.numbers += [one.number() for one in tried]
                tally.rows += [
                    (task, one.way.label, f"{one.passes:.1f}", one.text(), _word(one, few, top)) for one in tried
                ]
            tally.lines.append(Line(f"{task}: {theirs.way.label}", (_mark(theirs),)))
            tally.rows.append((task, theirs.way.label, f"{theirs.passes:.1f}", theirs.text(), "reference"))
        columns = ("task", "sampler", "passes a text", f"{metric.label} (95 % interval)", "")
        figure = tally.drawn("Quality against forward passes", "scatter", "forward passes a text", metric.label)
        return tally.finding(tally.verdict("all"), "Quality by denoising steps", columns, figure)

    def _by_sampler(self, of: Experiment, found: Found, task: str, metric: Metric) -> dict[str, list[Scored]]:
        """The scores of each model and sampler, by passes."""
        tried: dict[str, list[Scored]] = {}
        for model in of.others(task):
            for way in of.ways(model, task):
                one = scores.scored(of, found, way, task, metric)
                tried.setdefault(f"{model}, {way.decode}", []).append(one)
        return {name: sorted(ones, key=lambda one: one.passes) for name, ones in tried.items()}

    def _equal(self, one: Scored, top: Scored) -> bool:
        return one is top or scores.compare(one, top, self.margin).verdict in ("same", "better")


def _mark(one: Scored) -> Mark:
    i = one.interval
    return Mark(one.passes, i.value, i.low, i.high, str(one.way.config.steps or ""))


def _word(one: Scored, few: Scored, top: Scored) -> str:
    return ", ".join(word for word, other in (("enough", few), ("best", top)) if one is other)
