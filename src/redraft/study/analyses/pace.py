"""Time to write a text of a given length with a network of a given shape and random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.compare.format import times
from redraft.evaluation.timing import ratio_interval
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared.tally import ORDER, Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.pace import BASELINE
from redraft.study.cells.pace import Pace as PaceCell
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number, Verdict


@dataclass(frozen=True)
class Pace(Analysis):
    """Speed needs no trained weights; that so few steps suffice is another claim (``steps``)."""

    shape: str = "8b"  # of the claim
    preset: str = "8b"  # that is measured
    seconds: float = 0.2
    factor: float = 5.0
    vocab_size: int = 32_000
    prompt: int = 32
    new_tokens: int = 650  # about 500 words
    steps: tuple[int, ...] = (4, 8, 16)
    calls: int = 5

    def rule(self) -> str:
        return (
            f"At batch 1, {self.new_tokens} tokens with a network of the shape {self.shape}: the claim holds if a "
            f"number of steps tried takes less than {1000 * self.seconds:g} ms (95th percentile) and autoregression "
            f"with a key-value cache takes at least {self.factor:g} times as long (lower end of the 95 % interval), in "
            "part if one of the two is true; with another shape it stays open, and the ratio is reported."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        return [PaceCell(self.preset, self.vocab_size, self.prompt, self.new_tokens, self.steps, 1, self.calls)]

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally, [cell] = Tally(), self.cells(of, found)
        value = found(cell)
        theirs = value["seconds"][BASELINE]
        verdicts: list[Verdict] = []
        lines: dict[str, list[Mark]] = {}
        for name, seconds in value["seconds"].items():
            ratio = ratio_interval(seconds, theirs)
            middle, slow = (float(np.percentile(seconds, q)) for q in (50, 95))
            tally.rows.append((name, f"{1000 * middle:.0f}", f"{1000 * slow:.0f}", times(ratio[0])))
            tally.numbers.append(Number("", "", name, "seconds", middle, min(seconds), slow, 1))
            kind = name.split(",")[0] + (", dual cache" if "dual" in name else "")
            steps = value["steps"][name]
            lines.setdefault(kind, []).append(Mark(steps, 1000 * middle, 1000 * middle, 1000 * slow, str(steps)))
            if name != BASELINE:
                true = (slow < self.seconds) + (ratio[1] >= self.factor)
                verdicts.append(ORDER[2 - true])
                tally.told.append(
                    f"{name}: {1000 * middle:.0f} ms, {times(ratio[0])} ({times(ratio[1])} to {times(ratio[2])}) as "
                    "fast as autoregression"
                )
        tally.lines += [Line(name, tuple(marks)) for name, marks in lines.items()]
        same = self.preset == self.shape
        tally.verdicts += verdicts if same else []
        tally.reasons += [] if same else [f"measured with the shape {self.preset} in place of {self.shape}"]
        columns = ("system", "p50 ms", "p95 ms", "times as fast")
        title = f"{self.new_tokens} tokens, {value['parameters']:,} random weights, batch 1"
        figure = tally.drawn("Time by forward passes", "scatter", "forward passes", "milliseconds")
        return tally.finding(tally.verdict("best"), title, columns, figure)
