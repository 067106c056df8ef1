"""Updates until a validation bound is reached, for models that differ in how they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.evaluation.stats import Interval
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared.seeds import ratio_of_means, t_interval
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Figure, Finding, Line, Mark, Number, Sheet, Verdict, opened


@dataclass(frozen=True)
class Convergence(Analysis):
    """Updates to the worst final bound of all runs, linear between validations.

    All models have the same network, data, order of batches and seeds, and are scored by the same bound. The reference
    is the claim's ``reference``; the saving of another model is 1 - its updates / the reference's updates, with an
    interval over seeds (paired: a seed means the same initial weights and batches).
    """

    saving: float = 0.3  # share of the updates that the claim promises
    subject: str = "continuous"  # the model that is said to be faster

    def rule(self) -> str:
        return (
            f"The claim holds if '{self.subject}' reaches the bound with at least {self.saving:.0%} fewer updates than "
            "every other model (lower end of the 95 % interval over seeds), in part if it saves some updates against "
            "every other (interval above 0). With fewer than two seeds it stays open."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return [cell for task in of.tasks for model in of.models(task) for cell in of.of_all_seeds(model, task)]

    def conclude(self, of: Experiment, found: Found) -> Finding:
        if len(of.seeds) < 2:
            return opened("One seed has no spread: give at least two.")
        [task] = of.tasks
        curves = {
            model: [_curve(found(one)["curve"]) for one in of.of_all_seeds(model, task)] for model in of.models(task)
        }
        goal = max(curve[-1][1] for runs in curves.values() for curve in runs)
        when = {model: [reached(curve, goal) for curve in runs] for model, runs in curves.items()}
        rows, numbers, savings = [], [], {}
        for model, runs in curves.items():
            last = t_interval([curve[-1][1] for curve in runs])
            updates = t_interval(when[model])
            saving = None
            if model != self.subject:
                ratio = ratio_of_means(when[self.subject], when[model])
                saving = Interval(1 - ratio.value, 1 - ratio.high, 1 - ratio.low)
                savings[model] = saving
            rows.append((model, _spread(last, 4), _spread(updates, 0), "" if saving is None else _percent(saving)))
            for metric, value in (("bits per byte", last), ("updates to the goal", updates)):
                numbers.append(Number(task, model, "", metric, value.value, value.low, value.high, len(runs)))
        verdict = self._verdict(savings)
        parts = [f"{_percent(saving)} against {model}" for model, saving in savings.items()]
        text = f"To reach {goal:.3f} bits per byte, '{self.subject}' saves {'; '.join(parts)} of the updates."
        columns = ("trained with", "bits per byte at the end", f"updates to {goal:.3f}", f"saved by {self.subject}")
        lines = tuple(_line(model, runs) for model, runs in curves.items())
        return Finding(
            verdict,
            text,
            (Figure("Validation bound", "curves", "updates", "bits per byte", lines),),
            (Sheet("Mean over seeds with its 95 % interval", columns, tuple(rows)),),
            tuple(numbers),
        )

    def _verdict(self, savings: dict[str, Interval]) -> Verdict:
        if all(one.low >= self.saving for one in savings.values()):
            return "holds"
        return "in part" if all(one.low > 0 for one in savings.values()) else "not seen"


def reached(curve: Sequence[tuple[float, float]], goal: float) -> float:
    """Updates at which a curve of (updates, bound) first reaches the goal, linear between its points.

    Raises:
        ValueError: it never does.
    """
    before: tuple[float, float] | None = None
    for updates, value in curve:
        if value <= goal:
            if before is None:
                return updates
            return before[0] + (updates - before[0]) * (before[1] - goal) / (before[1] - value)
        before = updates, value
    raise ValueError("the curve never reaches the goal")


def _curve(points: Sequence[dict[str, Any]]) -> list[tuple[float, float]]:
    return [(float(point["step"]), float(point["bits_per_byte"])) for point in points]


def _line(model: str, runs: Sequence[Sequence[tuple[float, float]]]) -> Line:
    """The mean of the seeds at each validation."""
    marks = []
    for points in zip(*runs, strict=False):
        values = [value for _, value in points]
        marks.append(Mark(float(np.mean([at for at, _ in points])), float(np.mean(values)), min(values), max(values)))
    return Line(model, tuple(marks))


def _spread(value: Interval, digits: int) -> str:
    return f"{value.value:,.{digits}f} ± {(value.high - value.low) / 2:,.{digits}f}"


def _percent(value: Interval) -> str:
    return f"{100 * value.value:.0f} % ({100 * value.low:.0f} to {100 * value.high:.0f})"
