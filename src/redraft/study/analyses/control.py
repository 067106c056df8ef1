"""Control: success and fluency under constraints, against autoregression under the same constraints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation import stats
from redraft.evaluation.items import Item
from redraft.metrics import Array
from redraft.metrics.chrf import Chrf
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.tally import VOID, Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.controlled import FEWEST, KINDS, Controlled, thirds
from redraft.study.experiment import Experiment, Found
from redraft.study.finding import Finding, Number


@dataclass(frozen=True)
class Control(Analysis):
    """Each kind of constraint of ``cells/controlled.py`` with each model, in its first way of decoding.

    Success is the share of texts that satisfy the constraint. Fluency is chrF with the reference; of a hole only the
    generated part counts.
    """

    kinds: tuple[str, ...] = tuple(KINDS)
    rows: int = 40
    margin: float = 3.0  # of chrF

    def rule(self) -> str:
        return (
            "The claim holds if diffusion has better chrF than autoregression under the same constraint (95 % "
            "interval above 0), with at least its success, for every kind of constraint; in part for some kinds; it "
            f"is not seen otherwise. Equal means an equivalence test at a margin of {self.margin:g}. {VOID}"
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task), *of.texts(of.ways(of.claim.reference, task)[0], task)]
            for model in of.models(task):
                wanted += [cell for kind in self.kinds for cell in self._cells(of, model, task, kind)]
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally, metric = Tally(), Chrf()
        for task in of.tasks:
            primary = scores.metric_of(of, found, task)
            tally.reference(of, found, task, of.ways(of.claim.reference, task)[0], primary)
            every = [one for one in scores.items(of, found, task) if len(one.references[0].split()) >= FEWEST]
            asked = every[: self.rows]
            for kind in self.kinds:
                made = {model: self._fluency(of, found, model, task, kind, asked) for model in of.models(task)}
                valid = {model: self._success(of, found, model, task, kind) for model in of.models(task)}
                theirs, own = made[of.claim.reference], valid[of.claim.reference]
                for model in of.models(task):
                    fluency = stats.interval(made[model], metric.combine)
                    told = "reference"
                    if model != of.claim.reference:
                        tested = stats.compare(made[model], theirs, metric.combine, self.margin)
                        told = f"{tested.verdict}, {scores.signed(tested.difference)}"
                        good = tested.difference.low > 0 and valid[model][1] >= own[1]
                        tally.decide(task, "holds" if good else "not seen")
                        tally.told.append(f"{model}, {kind}: {valid[model][1]:.0f} % valid, chrF {told}")
                    shares = (f"{share:.0f}" for share in valid[model])
                    tally.rows.append((task, kind, model, *shares, scores.spread(fluency), told))
                    ends = fluency.value, fluency.low, fluency.high
                    tally.numbers.append(Number(task, model, kind, "chrf", *ends, len(of.seeds)))
        columns = ("task", "constraint", "model", "valid without it %", "valid under it %", "chrF", "")
        return tally.finding(tally.verdict("all"), "Success and fluency under constraints", columns)

    def _cells(self, of: Experiment, model: str, task: str, kind: str) -> list[Controlled]:
        way = of.ways(model, task)[0]
        return [
            Controlled(one, of.data(task), kind, way.config, way.new_tokens, self.rows)
            for one in of.of_all_seeds(model, task)
        ]

    def _success(self, of: Experiment, found: Found, model: str, task: str, kind: str) -> tuple[float, float]:
        """Per cent of texts that satisfy the constraint, without it and under it."""
        values = [found(cell) for cell in self._cells(of, model, task, kind)]
        without, under = (100 * float(np.mean([v[key] for v in values])) for key in ("valid_without", "valid"))
        return without, under

    def _fluency(self, of: Experiment, found: Found, model: str, task: str, kind: str, asked: Sequence[Item]) -> Array:
        """Statistics of chrF, [seeds, rows, k]."""
        stacked = []
        for cell in self._cells(of, model, task, kind):
            pairs = list(zip(found(cell)["texts"], asked, strict=True))
            if kind == "hole":
                texts = [_inside(text, item.references[0]) for text, item in pairs]
                references: list[tuple[str, ...]] = [(thirds(item.references[0])[1],) for item in asked]
            else:
                texts, references = [text for text, _ in pairs], [item.references for item in asked]
            stacked.append(Chrf().score(texts, references).stats)
        return np.stack(stacked)


def _inside(text: str, reference: str) -> str:
    """What stands between the given parts of a text with a hole; the whole text if it doesn't have them."""
    left, _, right = thirds(reference)
    plain = " ".join(text.split())
    if plain.startswith(left) and plain.endswith(right) and len(plain) >= len(left) + len(right):
        return plain[len(left) : len(plain) - len(right)].strip()
    return plain
