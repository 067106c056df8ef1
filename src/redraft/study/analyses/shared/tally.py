"""What an analysis collects task by task, and the finding made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from redraft.metrics import Metric
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Figure, Finding, Line, Number, Sheet, Verdict

ORDER: tuple[Verdict, ...] = ("holds", "in part", "not seen")
VOID = "It is void on a task where autoregression does not beat copying the input and the nearest training example."


@dataclass
class Tally:
    """Rows, figures, numbers and verdicts so far. Verdicts on a task whose comparison is void don't count."""

    told: list[str] = field(default_factory=list)  # sentences without a full stop
    rows: list[tuple[str, ...]] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)  # why tasks are void
    verdicts: list[Verdict] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)  # besides that of ``lines``
    tables: list[Sheet] = field(default_factory=list)  # besides that of ``rows``
    _void: set[str] = field(default_factory=set)

    def reference(self, of: Experiment, found: Found, task: str, way: Way, metric: Metric) -> Scored:
        """The score of the reference; if it does not beat the trivial systems, the task is void from now on."""
        one = scores.scored(of, found, way, task, metric)
        self.numbers.append(one.number())
        self.mark(task, scores.void(of, found, task, one))
        return one

    def mark(self, task: str, reason: str) -> None:
        """The task is void from now on, if there is a reason."""
        if reason:
            self.reasons.append(reason)
            self._void.add(task)

    def is_void(self, task: str) -> bool:
        """Does the comparison on a task say nothing?"""
        return task in self._void

    def decide(self, task: str, verdict: Verdict) -> None:
        """Count a verdict, unless its task is void."""
        if task not in self._void:
            self.verdicts.append(verdict)

    def verdict(self, by: Literal["best", "worst", "all"]) -> Verdict:
        """The verdict on the claim: the best or the worst of those counted; or *holds* if all hold, and *in part* if
        some do.
        """
        if not self.verdicts:
            return "open"
        places = [ORDER.index(one) for one in self.verdicts]
        if by == "all":
            return "holds" if max(places) == 0 else "in part" if min(places) < 2 else "not seen"
        return ORDER[min(places) if by == "best" else max(places)]

    def finding(self, verdict: Verdict, title: str, columns: Sequence[str], figure: Figure | None = None) -> Finding:
        """What the analysis concludes.

        Args:
            title, columns: of the table of ``rows``. figure: gets ``lines``.
        """
        figures = [figure] if figure is not None and self.lines else []
        text = "; ".join(self.told or self.reasons)
        return Finding(
            verdict,
            f"{text}." if text and not text.endswith(".") else text,
            (*figures, *self.figures),
            (Sheet(title, tuple(columns), tuple(self.rows)), *self.tables),
            tuple(self.numbers),
            tuple(self.reasons),
        )

    def drawn(self, title: str, kind: Literal["scatter", "curves"], x: str, y: str) -> Figure:
        """The figure of ``lines``."""
        return Figure(title, kind, x, y, tuple(self.lines))


def everything(of: Experiment, found: Found, metric: str, reference: bool = True) -> list[Cell]:
    """All ways of all models on the test rows of every task; of the reference only the best, if not ``reference``."""
    wanted: list[Cell] = []
    own = of.claim.reference
    for task in of.tasks:
        first = scores.validations(of, own, task)
        wanted += [of.data(task), of.trivial(task), *first]
        models = of.models(task) if reference else of.others(task)
        wanted += [cell for model in models for way in of.ways(model, task) for cell in of.texts(way, task)]
        if not reference and not first:
            wanted += of.texts(of.ways(own, task)[0], task)
        elif not reference and found.has(of.data(task), *first):
            best = scores.best(of, found, own, task, scores.metric_of(of, found, task, metric))
            wanted += of.texts(best, task)
    return wanted


def by_task(of: Experiment, found: Found, tally: Tally, name: str) -> Iterator[tuple[str, Metric, Scored]]:
    """Each task with its metric and the score of the reference's best way of decoding."""
    for task in of.tasks:
        metric = scores.metric_of(of, found, task, name)
        way = scores.best(of, found, of.claim.reference, task, metric)
        yield task, metric, tally.reference(of, found, task, way, metric)
