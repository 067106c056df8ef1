"""Memory on long sequences, against the quality of the same kinds of model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from redraft.compare.format import memory as bytes_text
from redraft.evaluation import stats
from redraft.metrics import divide
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.tally import VOID, Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.memory import Memory as MemoryCell
from redraft.study.cells.reconstruction import Reconstruction
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Line, Mark, Number, Verdict

_PHASES = ("sampling", "training")


@dataclass(frozen=True)
class Memory(Analysis):
    """Peak memory of ``subject`` and ``rival`` by text length, without weights and optimizer state; quality and
    reconstruction of trained models of both kinds on the claim's tasks.
    """

    metric: str = ""
    margin: float = 2.0  # of quality
    factor: float = 4.0  # times less memory
    subject: str = "latent"
    rival: str = "masked"
    preset: str = "7m"  # of the memory measurements
    vocab_size: int = 8192
    lengths: tuple[int, ...] = (512, 1024, 2048, 4096, 8192)
    fields: dict[str, Any] = field(default_factory=dict)  # of the subject's family in the memory measurements

    def rule(self) -> str:
        return (
            f"The claim holds if '{self.subject}' takes at most a {self.factor:g}th of the memory of '{self.rival}' at "
            f"{self.lengths[-1]:,} tokens, in sampling and in training, and is as good on every task (equivalence "
            f"test at a margin of {self.margin:g}, or better); in part if only the memory is saved; it is not seen "
            f"otherwise. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = [cell for phase in _PHASES for pair in self._pairs(phase) for cell in pair]
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task)]
            wanted += [cell for model in of.models(task) for cell in of.texts(of.ways(model, task)[0], task)]
            wanted += self._reconstructions(of, task)
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally, saved = Tally(), list[float]()
        for phase in _PHASES:
            marks: dict[str, list[Mark]] = {self.rival: [], self.subject: []}
            for theirs, ours in self._pairs(phase):
                values = [found(cell) for cell in (theirs, ours)]
                less, full = (values[0][key] / max(1.0, values[1][key]) for key in ("less", "full"))
                sizes = [bytes_text(int(value[key])) for key in ("less", "full") for value in values]
                tally.rows.append((phase, f"{theirs.length:,}", *sizes, f"{less:.1f}x", f"{full:.1f}x"))
                tally.numbers.append(
                    Number("", self.subject, phase, f"times less at {theirs.length}", less, less, less, 1)
                )
                for name, value in zip(marks, values, strict=True):
                    size = value["less"] / 1e6
                    marks[name].append(Mark(theirs.length, size, size, size))
            saved.append(less)
            tally.lines += [Line(f"{name}, {phase}", tuple(points)) for name, points in marks.items()]
        tally.told.append(
            f"{self.subject} takes {saved[0]:.1f} times less memory in sampling and {saved[1]:.1f} times less in "
            f"training at {self.lengths[-1]:,} tokens, without weights and optimizer state"
        )
        good = [self._quality(of, found, task, tally) for task in of.tasks]
        cheap = min(saved) >= self.factor
        verdict: Verdict = "not seen" if not cheap else "holds" if good and all(good) else "in part"
        if tally.reasons and verdict == "holds":
            verdict = "in part"
        both = [f"{name}, {what}" for what in ("less", "full") for name in (self.rival, self.subject)]
        columns = ("phase", "tokens", *both, "ratio less", "ratio full")
        figure = tally.drawn("Peak memory, without weights", "scatter", "tokens of a text", "MB")
        return tally.finding(verdict, "Peak memory of one text", columns, figure)

    def _pairs(self, phase: str) -> list[tuple[MemoryCell, MemoryCell]]:
        """The measurements of the rival and of the subject at each length."""
        families = ({"name": self.rival}, {"name": self.subject, **self.fields})
        return [
            tuple(MemoryCell(family, phase, length, self.preset, self.vocab_size) for family in families)  # type: ignore[misc]
            for length in self.lengths
        ]

    def _reconstructions(self, of: Experiment, task: str) -> list[Reconstruction]:
        return [Reconstruction(one, of.data(task)) for one in of.of_all_seeds(self.subject, task)]

    def _quality(self, of: Experiment, found: Found, task: str, tally: Tally) -> bool:
        metric = scores.metric_of(of, found, task, self.metric)
        tally.reference(of, found, task, of.ways(of.claim.reference, task)[0], metric)
        ours, theirs = (
            scores.scored(of, found, of.ways(model, task)[0], task, metric) for model in (self.subject, self.rival)
        )
        tested = scores.compare(ours, theirs, self.margin)
        values = [found(cell) for cell in self._reconstructions(of, task)]
        counts = np.stack([np.stack([value["hits"], value["tokens"]], 1) for value in values])
        share = stats.interval(counts, lambda total: 100 * divide(total[..., 0], total[..., 1]))
        tally.numbers += [ours.number(), theirs.number()]
        tally.told.append(
            f"on {task} it is {tested.verdict} ({ours.text()} against {theirs.text()} {metric.label}), and "
            f"reconstructs {scores.spread(share)} % of the tokens from its vectors"
        )
        return tested.verdict in ("same", "better") and not tally.is_void(task)
