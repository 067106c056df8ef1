"""Many passes over little text: the best stopping point of each kind of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.seeds import paired
from redraft.study.analyses.shared.tally import Tally
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number, Verdict

_Point = tuple[float, float, float, float]  # passes; bits per byte with the least and greatest of the seeds


@dataclass(frozen=True)
class Repeats(Analysis):
    """Validation curves over passes. The bits of autoregression are exact, those of diffusion an upper bound: an
    advantage of diffusion is one of the models, a disadvantage may be one of the bound.

    A model improves to the end if its last validation is its best (mean over seeds).
    """

    margin: float = 0.0  # bits per byte by which diffusion must be ahead

    def rule(self) -> str:
        return (
            "For each size of the text: the claim holds if diffusion at its best validation is ahead of autoregression "
            f"at its best by more than {self.margin:g} bits per byte (95 % interval over seeds); in part if "
            "autoregression overfits (its last validation is worse than its best) while diffusion improves to the "
            "end; it is not seen otherwise. It is void where autoregression does not beat an n-gram model."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task)]
            wanted += [cell for model in of.models(task) for cell in of.of_all_seeds(model, task)]
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally, own = Tally(), of.claim.reference
        for task in of.tasks:
            curves = {model: [found(one)["curve"] for one in of.of_all_seeds(model, task)] for model in of.models(task)}
            best = {model: [min(_bits(point) for point in run) for run in runs] for model, runs in curves.items()}
            ngram = found(of.trivial(task))["bits_per_byte"]
            if float(np.mean(best[own])) >= ngram:
                tally.mark(task, f"void on {task}: autoregression does not beat an n-gram ({ngram:.3f} bits per byte)")
            size = found(of.data(task))["train_bytes"]
            for model, runs in curves.items():
                mean = _mean(runs)
                at = min(mean, key=lambda point: point[1])
                tally.lines.append(Line(f"{task}: {model}", tuple(Mark(x, y, low, high) for x, y, low, high in mean)))
                row = (f"{at[0]:.0f}", f"{at[1]:.3f}", f"{mean[-1][0]:.0f}", f"{mean[-1][1]:.3f}")
                tally.rows.append((f"{size / 1e6:.2f} MB", model, *row))
                tally.numbers.append(Number(task, model, "best", "bits per byte", at[1], at[2], at[3], len(runs)))
            for model in of.others(task):
                gain = paired(best[own], best[model])
                tally.decide(task, self._verdict(gain.low, _mean(curves[own]), _mean(curves[model])))
                tally.told.append(
                    f"{model} on {size / 1e6:.2f} MB: {scores.signed(gain, 3)} bits per byte gained over "
                    "autoregression, each at its best pass"
                )
        columns = ("text", "model", "best pass", "bits per byte there", "last pass", "bits per byte there")
        figure = tally.drawn("Validation by passes", "scatter", "passes over the text", "bits per byte")
        return tally.finding(tally.verdict("best"), "Best and last validation", columns, figure)

    def _verdict(self, gain: float, theirs: Sequence[_Point], ours: Sequence[_Point]) -> Verdict:
        if gain > self.margin:
            return "holds"
        overfits = theirs[-1][1] > min(point[1] for point in theirs)
        improves = ours[-1][1] <= min(point[1] for point in ours)
        return "in part" if overfits and improves else "not seen"


def _bits(point: dict[str, Any]) -> float:
    return float(point["bits_per_byte"])


def _mean(runs: Sequence[Sequence[dict[str, Any]]]) -> list[_Point]:
    found = []
    for points in zip(*runs, strict=False):
        values = [_bits(point) for point in points]
        found.append((float(points[0]["passes"]), float(np.mean(values)), min(values), max(values)))
    return found
