"""A grid of decoding settings, and those that no other setting beats in both quality and work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally, by_task, everything
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number


@dataclass(frozen=True)
class Pareto(Analysis):
    """Every combination of steps, block size and order, on test rows, against forward passes.

    How much a factor matters is the mean range of quality when only this factor changes. The front holds the settings
    that no other one beats with as many passes or fewer.
    """

    metric: str = ""
    margin: float = 2.0
    factors: tuple[str, ...] = ("steps", "block", "order")

    def rule(self) -> str:
        return (
            "The claim holds if the settings trade quality for speed: the best one is better than the fastest on the "
            f"front by more than {self.margin:g} points (95 % interval), and steps matter more than block size and "
            f"order; in part if only the trade-off is there; it is not seen otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return everything(of, found, self.metric, reference=False)

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task, metric, theirs in by_task(of, found, tally, self.metric):
            tally.lines.append(Line(f"{task}: {theirs.way.label}", (_mark(theirs),)))
            for model in of.others(task):
                tried = [scores.scored(of, found, way, task, metric) for way in of.ways(model, task)]
                front = front_of(tried)
                tally.lines.append(Line(f"{task}: {model}, the front", tuple(map(_mark, front))))
                rest = [one for one in tried if one not in front]
                tally.lines += [Line(f"{task}: {model}, others", tuple(map(_mark, rest)))] if rest else []
                for one in sorted(tried, key=lambda one: (one.passes, -one.value)):
                    word = "front" if one in front else ""
                    tally.rows.append((task, one.way.label, f"{one.passes:.1f}", one.text(), word))
                    tally.numbers.append(one.number())
                effects = {name: self._effect(tried, name) for name in self.factors}
                tally.numbers += [
                    Number(task, model, name, "range of quality", value, value, value, len(theirs.stats))
                    for name, value in effects.items()
                ]
                gain = scores.compare(front[-1], front[0], self.margin).difference
                trades = gain.low > self.margin
                leads = max(effects, key=effects.__getitem__) == "steps"
                tally.decide(task, "holds" if trades and leads else "in part" if trades else "not seen")
                ranges = ", ".join(f"{name} {value:.1f}" for name, value in effects.items())
                tally.told.append(
                    f"{model} on {task}: from {front[0].passes:.1f} to {front[-1].passes:.1f} passes {metric.label} "
                    f"changes by {scores.signed(gain)}; mean range by factor: {ranges}"
                )
        columns = ("task", "setting", "passes a text", f"{metric.label} (95 % interval)", "")
        figure = tally.drawn("Quality against forward passes", "scatter", "forward passes a text", metric.label)
        return tally.finding(tally.verdict("worst"), "The grid", columns, figure)

    def _effect(self, tried: Sequence[Scored], factor: str) -> float:
        """The mean range of quality over groups of settings that differ in this factor only."""
        groups: dict[tuple[str, ...], list[float]] = {}
        for one in tried:
            options = {name: one.way.config.options.get(name, "") for name in self.factors if name != factor}
            key = (one.way.decode, *(f"{name}={value}" for name, value in options.items()))
            groups.setdefault(key, []).append(one.value)
        ranges = [max(values) - min(values) for values in groups.values() if len(values) > 1]
        return float(np.mean(ranges)) if ranges else 0.0


def front_of(tried: Sequence[Scored]) -> list[Scored]:
    """The settings that no other one beats, by forward passes."""
    found: list[Scored] = []
    for one in sorted(tried, key=lambda one: (one.passes, -one.value)):
        if not found or one.value > found[-1].value:
            found.append(one)
    return found


def _mark(one: Scored) -> Mark:
    i = one.interval
    return Mark(one.passes, i.value, i.low, i.high, str(one.way.config.steps or ""))
