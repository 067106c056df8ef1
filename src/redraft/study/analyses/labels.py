"""Understanding: labels by generation and by likelihood, against autoregression at the same size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation import stats
from redraft.evaluation.scores import score
from redraft.metrics import Array
from redraft.metrics.accuracy import Accuracy
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.tally import Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.choices import Choices
from redraft.study.cells.texts import Texts
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Number

_LIKELIHOOD = "by likelihood"


@dataclass(frozen=True)
class Labels(Analysis):
    """Accuracy of each model, decoded as is best on validation rows: a way of generation, or the likelihood of every
    label.
    """

    margin: float = 3.0  # per cent of rows
    samples: int = 16  # of the bound of a label's likelihood

    def rule(self) -> str:
        return (
            f"The claim holds if the model is better than autoregression, or equal at a margin of {self.margin:g} per "
            "cent of rows, on every task; in part on some; it is not seen otherwise. A task is void where "
            "autoregression does not beat the most common label and the nearest training example."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task)]
            for model in of.models(task):
                for way in self._ways(of, model, task):
                    wanted += [*self._answers(of, model, task, way, "validation")]
                    wanted += [*self._answers(of, model, task, way, "test")]
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally, metric = Tally(), Accuracy()
        for task in of.tasks:
            chosen = {model: self._best(of, found, model, task) for model in of.models(task)}
            values = {model: self._stats(of, found, model, task, way, "test") for model, way in chosen.items()}
            theirs = values[of.claim.reference]
            tally.mark(task, self._void(of, found, task, theirs))
            for model, own in values.items():
                interval = stats.interval(own, metric.combine)
                verdict, told = "reference", ""
                if model != of.claim.reference:
                    tested = stats.compare(own, theirs, metric.combine, self.margin)
                    verdict, told = tested.verdict, scores.signed(tested.difference)
                    good = verdict in ("same", "better")
                    tally.decide(task, "holds" if good else "not seen")
                    tally.told.append(f"{model} on {task} ({chosen[model]}): {verdict}, {told} per cent of rows")
                row = (task, model, chosen[model], scores.spread(interval), told, verdict)
                tally.rows.append(row)
                ends = interval.value, interval.low, interval.high
                tally.numbers.append(Number(task, model, chosen[model], "accuracy", *ends, len(own)))
        columns = ("task", "model", "labels", "accuracy %", "difference", "")
        return tally.finding(tally.verdict("all"), "Accuracy", columns)

    def _ways(self, of: Experiment, model: str, task: str) -> list[str]:
        return [*(way.label for way in of.ways(model, task)), _LIKELIHOOD]

    def _answers(self, of: Experiment, model: str, task: str, way: str, part: str) -> Sequence[Choices | Texts]:
        runs = of.of_all_seeds(model, task)
        if way == _LIKELIHOOD:
            return [Choices(one, of.data(task), part, self.samples) for one in runs]
        [chosen] = [one for one in of.ways(model, task) if one.label == way]
        return of.texts(chosen, task, part)

    def _stats(self, of: Experiment, found: Found, model: str, task: str, way: str, part: str) -> Array:
        asked = scores.items(of, found, task, part)
        cells = self._answers(of, model, task, way, part)
        return np.stack([score(Accuracy(), found(cell)["texts"], asked).stats for cell in cells])

    def _best(self, of: Experiment, found: Found, model: str, task: str) -> str:
        metric = Accuracy()
        return max(
            self._ways(of, model, task),
            key=lambda way: stats.point(self._stats(of, found, model, task, way, "validation"), metric.combine),
        )

    def _void(self, of: Experiment, found: Found, task: str, theirs: Array) -> str:
        asked, metric = scores.items(of, found, task), Accuracy()
        for name, texts in found(of.trivial(task))["texts"].items():
            trivial = score(metric, texts, asked).stats[None]
            if stats.compare(theirs, trivial, metric.combine, 1e-9).verdict != "better":
                own, other = (stats.point(each, metric.combine) for each in (theirs, trivial))
                return f"void on {task}: autoregression does not beat {name} ({own:.1f} against {other:.1f} %)"
        return ""
