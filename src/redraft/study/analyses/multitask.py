"""One model for several tasks against models of one task each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.tally import VOID, Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.texts import Texts
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Finding


@dataclass(frozen=True)
class Multitask(Analysis):
    """``subject`` was trained on all tasks together, ``single`` on one at a time; both are asked the same test rows.

    The subject is trained on as many tokens as the single models together.
    """

    margin: float = 2.0  # the drop that counts as modest, in units of each task's first metric
    subject: str = "several"
    single: str = "single"

    def rule(self) -> str:
        return (
            f"The claim holds if the one model loses at most {self.margin:g} points against the model of one task on "
            "every task (lower end of the 95 % interval of the difference), in part on some; it is not seen "
            f"otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in self._tasks(of):
            wanted += [of.data(task), of.trivial(task)]
            wanted += of.texts(of.ways(of.claim.reference, task)[0], task)
            wanted += of.texts(of.ways(self.single, task)[0], task)
            wanted += self._of_all(of, task)
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task in self._tasks(of):
            metric = scores.metric_of(of, found, task)
            theirs = tally.reference(of, found, task, of.ways(of.claim.reference, task)[0], metric)
            single = scores.scored(of, found, of.ways(self.single, task)[0], task, metric)
            ours = scores.of_texts(of, found, self._way(of, task), task, metric, self._of_all(of, task))
            tested = scores.compare(ours, single, self.margin)
            tally.decide(task, "holds" if tested.difference.low > -self.margin else "not seen")
            drop = scores.signed(tested.difference)
            tally.told.append(f"{task}: {drop} {metric.label} against the model of this task alone")
            cells = (metric.label, theirs.text(), single.text(), ours.text(), drop)
            tally.rows.append((task, *cells))
            tally.numbers += [single.number(), ours.number()]
        columns = ("task", "metric", "autoregressive, one task", "one task", "all tasks", "difference")
        return tally.finding(tally.verdict("all"), "One model for all tasks", columns)

    def _tasks(self, of: Experiment) -> list[str]:
        return [task for task in of.tasks if not of.claim.tasks[task].mix]

    def _whole(self, of: Experiment) -> str:
        return next(task for task in of.tasks if of.claim.tasks[task].mix)

    def _way(self, of: Experiment, task: str) -> Way:
        return of.ways(self.subject, task)[0]

    def _of_all(self, of: Experiment, task: str) -> tuple[Texts, ...]:
        """Texts of the model of all tasks for the items of one."""
        return of.texts(self._way(of, task), task, trained=of.of_all_seeds(self.subject, self._whole(of)))
