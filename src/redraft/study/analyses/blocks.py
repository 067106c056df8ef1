"""Block sizes at a fixed number of forward passes: what decoding from left to right costs or gains, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.scores import Scored
from redraft.study.analyses.shared.tally import VOID, Tally, by_task, everything
from redraft.study.cells.base import Cell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Verdict


@dataclass(frozen=True)
class Blocks(Analysis):
    """The same model decoded in blocks of several sizes with the same steps in all; block 0 is the whole answer.

    ``whole`` names the tasks on which the whole answer should win (global constraints); blocks should win on others.
    """

    metric: str = ""
    margin: float = 2.0
    whole: tuple[str, ...] = ()

    def rule(self) -> str:
        return (
            f"A block size is free on a task if it is equal to the best one at a margin of {self.margin:g}. The claim "
            "holds if every size is free, or the winner is as claimed: the whole answer on tasks with global "
            f"constraints ({', '.join(self.whole) or 'none here'}), a block on others; in part if this is so on some "
            f"tasks; it is not seen otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return everything(of, found, self.metric, reference=False)

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task, metric, theirs in by_task(of, found, tally, self.metric):
            tally.rows.append((task, theirs.way.label, "", theirs.text(), "reference"))
            for model in of.others(task):
                tried = [scores.scored(of, found, way, task, metric) for way in of.ways(model, task)]
                for steps in sorted({one.way.steps for one in tried}):
                    same = [one for one in tried if one.way.steps == steps]
                    self._group(task, model, steps, same, tally)
        columns = ("task", "system", "block", f"{metric.label} (95 % interval)", "against the best")
        figure = tally.drawn("Quality by block size", "scatter", "block (the whole answer last)", metric.label)
        return tally.finding(tally.verdict("all"), "Blocks at equal forward passes", columns, figure)

    def _group(self, task: str, model: str, steps: int, same: Sequence[Scored], tally: Tally) -> None:
        """The block sizes at one number of steps."""
        top = max(same, key=lambda one: one.value)
        free = []
        for one in same:
            tested = None if one is top else scores.compare(one, top, self.margin)
            free.append(tested is None or tested.verdict in ("same", "better"))
            told = "best" if tested is None else f"{tested.verdict}, {scores.signed(tested.difference)}"
            size = str(_block(one) or "whole")
            tally.rows.append((task, f"{model}, {steps} steps", size, one.text(), told))
            tally.numbers.append(one.number())
        marks = [
            Mark(_block(one) or one.way.new_tokens, one.interval.value, one.interval.low, one.interval.high)
            for one in same
        ]
        tally.lines.append(Line(f"{task}: {model}, {steps} steps", tuple(sorted(marks, key=lambda mark: mark.x))))
        as_claimed = (_block(top) == 0) == (task in self.whole)
        verdict: Verdict = "holds" if all(free) or as_claimed else "not seen"
        tally.decide(task, verdict)
        how = "every size is free" if all(free) else f"the best is {_block(top) or 'the whole answer'}"
        tally.told.append(f"{model} on {task}, {steps} steps: {how}")


def _block(one: Scored) -> int:
    return int(one.way.config.options.get("block", 0))
