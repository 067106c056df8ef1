"""The fewest steps with the quality of the best: how many forward passes a text needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Figure, Finding, Line, Mark, Sheet, Verdict


@dataclass(frozen=True)
class Saturation(Analysis):
    """Quality against denoising steps, for every task and sampler.

    The best number of steps of a sampler is that with the highest value on the test rows; a smaller number is enough if
    it is equal to it at the margin (two one-sided paired tests), or better.
    """

    metric: str = ""  # empty: the first of the task
    margin: float = 1.0  # in units of the metric
    most: int = 20  # steps within which the claim is about

    def rule(self) -> str:
        return (
            f"A number of steps is enough if an equivalence test at a margin of {self.margin:g} against the best "
            f"number passes, or it is better. The claim holds if at most {self.most} steps are enough for every "
            "sampler and task, in part if for some. It is void on a task where autoregression does not beat copying "
            "the input and the nearest training example."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        reference = of.claim.reference
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task), *scores.validations(of, reference, task)]
            wanted += [c for m in of.others(task) for way in of.ways(m, task) for c in of.texts(way, task)]
            if found.has(of.data(task), *scores.validations(of, reference, task)):
                metric = scores.metric_of(of, found, task, self.metric)
                wanted += of.texts(scores.best(of, found, reference, task, metric), task)
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        rows, lines, numbers, reasons, enough = [], [], [], [], []
        for task in of.tasks:
            metric = scores.metric_of(of, found, task, self.metric)
            theirs = scores.scored(of, found, scores.best(of, found, of.claim.reference, task, metric), task, metric)
            numbers.append(theirs.number())
            reason = scores.void(of, found, task, theirs)
            reasons += [reason] if reason else []
            for name, tried in self._by_sampler(of, found, task).items():
                top = max(tried, key=lambda one: one.interval.value)
                few = min((one for one in tried if self._equal(one, top)), key=lambda one: one.way.steps)
                enough += [] if reason else [(task, name, few, top)]
                lines.append(_line(f"{task}: {name}", tried))
                numbers += [one.number() for one in tried]
                rows += [
                    (task, name, str(one.way.steps), f"{one.passes:.1f}", one.text(), _mark(one, few, top))
                    for one in tried
                ]
            lines.append(Line(f"{task}: {theirs.way.label}", (_at(theirs, theirs.passes),)))
            rows.append((task, theirs.way.label, "", f"{theirs.passes:.1f}", theirs.text(), "reference"))
        good = [few.way.steps <= self.most for _, _, few, _ in enough]
        verdict: Verdict = "open" if not good else "holds" if all(good) else "in part" if any(good) else "not seen"
        parts = [
            f"{name} on {task}: {few.way.steps} steps ({few.text()}) are enough, the best of those tried are "
            f"{top.way.steps} ({top.text()})"
            for task, name, few, top in enough
        ]
        columns = ("task", "sampler", "steps", "passes a text", f"{metric.label} (95 % interval)", "")
        figure = Figure(
            "Quality against forward passes", "scatter", "forward passes a text", metric.label, tuple(lines)
        )
        return Finding(
            verdict,
            f"{'; '.join(parts or reasons)}.",
            (figure,),
            (Sheet("Quality by denoising steps", columns, tuple(rows)),),
            tuple(numbers),
            tuple(reasons),
        )

    def _by_sampler(self, of: Experiment, found: Found, task: str) -> dict[str, list[Scored]]:
        """The scores of each model and sampler, by steps."""
        metric = scores.metric_of(of, found, task, self.metric)
        tried: dict[str, list[Scored]] = {}
        for model in of.others(task):
            for way in of.ways(model, task):
                tried.setdefault(f"{model}, {way.decode}", []).append(scores.scored(of, found, way, task, metric))
        return {name: sorted(found_, key=lambda one: one.way.steps) for name, found_ in tried.items()}

    def _equal(self, one: Scored, top: Scored) -> bool:
        return one is top or scores.compare(one, top, self.margin).verdict in ("same", "better")


def _line(name: str, tried: Sequence[Scored]) -> Line:
    return Line(name, tuple(_at(one, one.passes) for one in tried))


def _at(one: Scored, x: float) -> Mark:
    return Mark(x, one.interval.value, one.interval.low, one.interval.high, str(one.way.config.steps or ""))


def _mark(one: Scored, few: Scored, top: Scored) -> str:
    return ", ".join(word for word, other in (("enough", few), ("best", top)) if one is other)
