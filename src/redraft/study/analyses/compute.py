"""Quality against counted operations: is one kind of model better at less inference compute?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.compare.format import flops
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally, by_task, everything
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number, Verdict


@dataclass(frozen=True)
class Compute(Analysis):
    """Every way of decoding on test rows: its quality, and its counted operations a token (prompt passes included).

    The reference is autoregression as it decodes best on validation rows. Operations are counted from the shapes of
    every forward pass, with the key-value cache (``models/parts/flops.py``).
    """

    metric: str = ""
    gain: float = 1.2  # points that are claimed
    saving: float = 0.6  # share of the operations that is claimed to be saved
    margin: float = 2.0  # for "as good"

    def rule(self) -> str:
        return (
            f"The claim holds if a way of decoding gains at least {self.gain:g} points over autoregression's best "
            f"(lower end of the 95 % interval) with {self.saving:.0%} fewer operations a token, in part if one is as "
            f"good (equivalence test at a margin of {self.margin:g}, or better) with fewer operations than "
            f"autoregression's cheapest way; it is not seen otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return everything(of, found, self.metric)

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task, metric, best in by_task(of, found, tally, self.metric):
            tried = {
                model: [scores.scored(of, found, way, task, metric) for way in of.ways(model, task)]
                for model in of.models(task)
            }
            for model, ones in tried.items():
                marks = map(_mark, sorted(ones, key=lambda one: one.flops))
                tally.lines.append(Line(f"{task}: {model}", tuple(marks)))
                for one in ones:
                    d = None if one.way == best.way else scores.compare(one, best, self.margin)
                    against = "reference" if d is None else f"{d.difference.value:+.1f} ({d.verdict})"
                    operations = flops(one.flops), f"{one.passes:.1f}"
                    tally.rows.append((task, one.way.label, one.text(), against, *operations))
                    tally.numbers += [one.number(), _operations(one)]
            cheapest = min(tried[of.claim.reference], key=lambda one: one.flops)
            ours = [one for model in of.others(task) for one in tried[model]]
            tally.decide(task, self._verdict(ours, best, cheapest))
            top = max(ours, key=lambda one: one.value)
            difference = scores.compare(top, best, self.margin).difference
            tally.told.append(
                f"{top.way.label} on {task}: {scores.signed(difference)} {metric.label} at "
                f"{top.flops / best.flops:.2f} times the operations a token of {best.way.label}"
            )
        columns = ("task", "system", metric.label, "against the best", "operations a token", "passes a text")
        figure = tally.drawn("Quality against compute", "scatter", "operations a token", metric.label)
        return tally.finding(tally.verdict("best"), "Quality and operations", columns, figure)

    def _verdict(self, ours: Sequence[Scored], best: Scored, cheapest: Scored) -> Verdict:
        found: Verdict = "not seen"
        for one in ours:
            tested = scores.compare(one, best, self.margin)
            if tested.difference.low >= self.gain and one.flops <= (1 - self.saving) * best.flops:
                return "holds"
            if tested.verdict in ("same", "better") and one.flops < cheapest.flops:
                found = "in part"
        return found


def _mark(one: Scored) -> Mark:
    return Mark(one.flops, one.interval.value, one.interval.low, one.interval.high, str(one.way.config.steps or ""))


def _operations(one: Scored) -> Number:
    value = one.flops
    return Number(one.task, one.way.model, one.way.label, "operations a token", value, value, value, len(one.stats))
