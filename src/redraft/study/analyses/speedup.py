"""Speed at equal quality: latency at several batch sizes, or cost at each system's best batch size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from redraft.compare.format import times
from redraft.evaluation.timing import ratio_interval
from redraft.metrics import Metric
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.choice import Choice, choose, needed
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.pace import BASELINE, Pace
from redraft.study.cells.timing import Timing
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Figure, Finding, Line, Mark, Number, Sheet, Verdict

Ratios = dict[str, tuple[float, float, float]]  # factor with its interval, by batch size


@dataclass(frozen=True)
class Speedup(Analysis):
    """Each model's cheapest way of decoding that reaches the reference's quality on validation rows is timed against
    the reference's cheapest way that is as good as its best. Quality is then tested on test rows.

    With ``lengths``, both are also timed on longer texts with random weights, with as many passes a token as the chosen
    way took: what the quality on the task costs when texts get longer.
    """

    metric: str = ""
    margin: float = 2.0
    factor: float = 5.0  # times as fast, or as cheap
    unit: Literal["latency", "cost"] = "latency"
    batches: tuple[int, ...] = (1, 8, 32)
    at: tuple[int, ...] = (1,)  # batch sizes at which the factor is claimed
    calls: int = 8
    lengths: tuple[int, ...] = ()
    pace: dict[str, Any] = field(default_factory=lambda: {"preset": "1m", "vocab_size": 1000, "prompt": 32, "calls": 3})

    def rule(self) -> str:
        if self.unit == "cost":
            where = "each at the batch size at which a request costs it least"
        else:
            where = f"at batch size {' and '.join(map(str, self.at))}"
        if self.lengths:
            where += f", on {self.lengths[-1]} tokens too"
        word = "fast" if self.unit == "latency" else "cheap"
        return (
            f"The claim holds if a model is as good as autoregression (equivalence test at a margin of "
            f"{self.margin:g}, or better) and at least {self.factor:g} times as {word}, {where} (lower end of the "
            f"95 % interval); in part if it is as good and faster at some batch size; it is not seen otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            first = needed(of, task)
            wanted += first
            if found.has(*first):
                chosen = self._choice(of, found, task)
                for way in chosen.ways:
                    wanted += of.texts(way, task)
                wanted += [self._timing(of, task, chosen, batch) for batch in self.batches]
                tests = [cell for way in chosen.ours.values() for cell in of.texts(way, task)]
                if self.lengths and found.has(*tests):
                    wanted += self._paces(of, found, task, chosen)
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task in of.tasks:
            metric = self._metric(of, found, task)
            chosen = self._choice(of, found, task)
            best = tally.reference(of, found, task, chosen.best, metric)
            fast = scores.scored(of, found, chosen.fast, task, metric)
            tally.rows.append((task, best.way.label, best.text(), "reference", f"{best.passes:.1f}", ""))
            tally.rows.append((task, fast.way.label, fast.text(), "", f"{fast.passes:.1f}", "reference of speed"))
            for model, way in chosen.ours.items():
                ours = scores.scored(of, found, way, task, metric)
                quality = scores.compare(ours, best, self.margin)
                ratios = self._ratios(of, found, task, chosen, way)
                longest = self._longer(of, found, task, chosen, model, tally)
                tally.decide(task, self._verdict(quality.verdict, ratios, longest))
                words = "; ".join(f"{_factor(ratio)} at {name}" for name, ratio in ratios.items())
                longer = f"; {_factor(longest)} on {self.lengths[-1]} tokens" if longest else ""
                tally.told.append(
                    f"{ours.way.label} on {task}: {quality.verdict} {metric.label} "
                    f"({scores.signed(quality.difference)}); {'speed' if self.unit == 'latency' else 'cost'} against "
                    f"{fast.way.label}: {words}{longer}"
                )
                tally.rows.append((task, ours.way.label, ours.text(), quality.verdict, f"{ours.passes:.1f}", words))
                tally.numbers += [ours.number(), *_numbers(task, ours, ratios, self.unit)]
        last = "times as fast" if self.unit == "latency" else "times as cheap"
        columns = ("task", "system", metric.label, "quality", "passes a text", last)
        return tally.finding(tally.verdict("best"), "Quality and speed", columns)

    def _verdict(self, quality: str, ratios: Ratios, longest: tuple[float, float, float] | None) -> Verdict:
        if quality not in ("same", "better"):
            return "not seen"
        named = [f"batch {b}" for b in self.at] if self.unit == "latency" else list(ratios)
        reached = all(ratios[name][1] >= self.factor for name in named)
        reached &= longest is None or longest[1] >= self.factor
        return "holds" if reached else "in part" if any(low > 1 for _, low, _ in ratios.values()) else "not seen"

    def _metric(self, of: Experiment, found: Found, task: str) -> Metric:
        return scores.metric_of(of, found, task, self.metric)

    def _choice(self, of: Experiment, found: Found, task: str) -> Choice:
        return choose(of, found, task, self._metric(of, found, task), self.margin)

    def _timing(self, of: Experiment, task: str, chosen: Choice, batch: int) -> Timing:
        return of.timing(chosen.ways, task, batch, self.calls)

    def _ratios(self, of: Experiment, found: Found, task: str, chosen: Choice, way: Way) -> Ratios:
        """How many times as fast as the reference's fast way, at each batch size; or how many times as cheap."""
        ids = [one.config.id for one in chosen.ways]
        seconds = {}
        for batch in self.batches:
            entries = found(self._timing(of, task, chosen, batch))["entries"]
            seconds[batch] = [
                [s / batch for s in entries[ids.index(one.config.id)]["seconds"]] for one in (way, chosen.fast)
            ]
        if self.unit == "latency":
            return {f"batch {b}": ratio_interval(ours, theirs) for b, (ours, theirs) in seconds.items()}
        cheap = [min(self.batches, key=lambda b: float(np.median(seconds[b][side]))) for side in (0, 1)]
        ours, theirs = seconds[cheap[0]][0], seconds[cheap[1]][1]
        return {f"batch {cheap[0]} against {cheap[1]}": ratio_interval(ours, theirs)}

    # ---- longer texts, random weights

    def _paces(self, of: Experiment, found: Found, task: str, chosen: Choice) -> list[Pace]:
        cells = []
        for way in chosen.ours.values():
            one = scores.scored(of, found, way, task, self._metric(of, found, task))
            for length in self.lengths:
                steps = min(length, max(1, math.ceil(length * one.passes / max(1.0, one.tokens))))
                cells += [Pace(new_tokens=length, steps=(steps,), batch=b, **self.pace) for b in self.batches]
        return cells

    def _longer(
        self, of: Experiment, found: Found, task: str, chosen: Choice, model: str, tally: Tally
    ) -> tuple[float, float, float] | None:
        """The factor on the longest texts at the batch size of the claim. The tally gets a table and a figure."""
        if not self.lengths:
            return None
        only = Choice(chosen.best, chosen.fast, {model: chosen.ours[model]})
        rows, lines, longest = [], dict[str, list[Mark]](), None
        for cell in self._paces(of, found, task, only):
            seconds_of = found(cell)["seconds"]
            for name, seconds in seconds_of.items():
                middle, slow = (1000 * float(np.percentile(seconds, q)) for q in (50, 95))
                ratio = ratio_interval(seconds, seconds_of[BASELINE])
                size = str(cell.new_tokens), str(cell.batch)
                rows.append((*size, name, f"{middle:.1f}", f"{slow:.1f}", times(ratio[0])))
                kind = f"{name.split(',')[0]}{', dual cache' if 'dual' in name else ''}, batch {cell.batch}"
                lines.setdefault(kind, []).append(Mark(cell.new_tokens, middle, middle, middle))
                if (cell.new_tokens, cell.batch, name) == (self.lengths[-1], self.at[0], _full(cell)):
                    longest = ratio
        columns = ("tokens", "batch", "system", "p50 ms", "p95 ms", "times as fast")
        title = f"Longer texts, random weights ({self.pace['preset']}), passes a token as {model} on {task}"
        tally.tables.append(Sheet(title, columns, tuple(rows)))
        drawn = tuple(Line(name, tuple(marks)) for name, marks in lines.items())
        axes = "tokens of a text", "milliseconds (median)"
        tally.figures.append(Figure("Latency by length, random weights", "scatter", *axes, drawn))
        return longest


def _factor(ratio: tuple[float, float, float]) -> str:
    value, low, high = ratio
    return f"{times(value)} ({times(low)} to {times(high)})"


def _full(cell: Pace) -> str:
    """The candidate with full passes."""
    return f"masked, {cell.steps[0]} steps"


def _numbers(task: str, one: Scored, ratios: Ratios, unit: str) -> list[Number]:
    found = []
    for name, (value, low, high) in ratios.items():
        found.append(Number(task, one.way.model, one.way.label, f"{unit} factor at {name}", value, low, high, 1))
    return found
