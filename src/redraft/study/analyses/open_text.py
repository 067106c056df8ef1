"""Open-ended writing: how close continuations are to human text under an independent judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.evaluation import stats
from redraft.evaluation.scores import score
from redraft.evaluation.stats import Interval
from redraft.metrics import Array
from redraft.metrics.diversity import Diversity
from redraft.metrics.mauve import Mauve
from redraft.metrics.perplexity import Perplexity
from redraft.study.analyses.base import Analysis
from redraft.study.analyses.shared import scores
from redraft.study.analyses.shared.tally import Tally
from redraft.study.cells.base import Cell
from redraft.study.cells.judged import Judged
from redraft.study.experiment import Experiment, Found, Way
from redraft.study.finding import Finding, Number, Verdict

_PROPERTIES = (Diversity("entropy"), Diversity("repetition", 4))


@dataclass(frozen=True)
class OpenText(Analysis):
    """Every model and way of decoding by MAUVE, by perplexity under the judge, by entropy and by repeated 4-grams.

    Perplexity alone rewards repetition: it is read beside entropy and against the values of human text. The judge is
    the model ``judge`` of the claim, with the seed after the last one of the others.
    """

    judge: str = "judge"
    hybrid: str = "block"
    margin: float = 0.02  # of MAUVE, as a share of 1

    def rule(self) -> str:
        return (
            "The claim holds if the MAUVE of autoregression exceeds that of every diffusion model by more than "
            f"{self.margin:g} (95 % interval over rows and seeds) and '{self.hybrid}' lies between, in part if it "
            "exceeds that of fully parallel diffusion only; it is not seen otherwise. It is void if autoregression "
            "does not beat an n-gram model in bits per byte."
        )

    def cells(self, of: Experiment, found: Found) -> Sequence[Cell]:
        wanted: list[Cell] = []
        for task in of.tasks:
            wanted += [of.data(task), of.trivial(task), *of.likelihoods(of.claim.reference, task)]
            for model in self._writers(of, task):
                wanted += [cell for way in of.ways(model, task) for cell in self._texts(of, way, task)]
        return wanted

    def conclude(self, of: Experiment, found: Found) -> Finding:
        tally = Tally()
        for task in of.tasks:
            tally.mark(task, self._void(of, found, task))
            found_by: dict[str, tuple[Way, Interval, Array]] = {}
            for model in self._writers(of, task):
                for way in of.ways(model, task):
                    mauve, values = self._row(of, found, way, task, tally)
                    if model not in found_by or mauve.value > found_by[model][1].value:
                        found_by[model] = (way, mauve, values)
            self._human(of, found, task, tally)
            own = found_by.pop(of.claim.reference)
            gaps = {model: self._gap(own[2], values) for model, (_, _, values) in found_by.items()}
            tally.decide(task, self._verdict(gaps))
            tally.told += [
                f"MAUVE of autoregression minus that of {found_by[model][0].label} on {task}: {scores.signed(gap, 3)}"
                for model, gap in gaps.items()
            ]
        names = [metric.label for metric in _PROPERTIES]
        columns = ("task", "system", "MAUVE", "perplexity under the judge", *names)
        return tally.finding(tally.verdict("worst"), "Continuations against human text", columns)

    def _writers(self, of: Experiment, task: str) -> list[str]:
        return [model for model in of.models(task) if model != self.judge]

    def _texts(self, of: Experiment, way: Way, task: str) -> list[Judged]:
        judge = of.trained(self.judge, task, len(of.seeds))
        return [
            Judged(one, judge, of.data(task), way.config, way.new_tokens) for one in of.of_all_seeds(way.model, task)
        ]

    def _row(self, of: Experiment, found: Found, way: Way, task: str, tally: Tally) -> tuple[Interval, Array]:
        """One way of decoding as a row; its MAUVE and the statistics of that."""
        values = [found(cell) for cell in self._texts(of, way, task)]
        asked = scores.items(of, found, task)
        mauve = np.stack([np.asarray(value["mauve"]) for value in values])
        at = stats.interval(mauve, Mauve("").combine, resamples=500)
        perplexity = stats.interval(np.stack([np.asarray(value["nats"]) for value in values]), Perplexity("").combine)
        properties = [
            stats.interval(np.stack([score(metric, value["texts"], asked).stats for value in values]), metric.combine)
            for metric in _PROPERTIES
        ]
        cells = scores.spread(at, 3), scores.spread(perplexity), *(scores.spread(one, 2) for one in properties)
        tally.rows.append((task, way.label, *cells))
        named = (("mauve", at), ("perplexity", perplexity))
        tally.numbers += [
            Number(task, way.model, way.label, name, one.value, one.low, one.high, len(values)) for name, one in named
        ]
        return at, mauve

    def _human(self, of: Experiment, found: Found, task: str, tally: Tally) -> None:
        way = of.ways(of.claim.reference, task)[0]
        value = found(self._texts(of, way, task)[0])
        asked = scores.items(of, found, task)
        texts = [item.references[0] for item in asked]
        perplexity = stats.interval(np.asarray(value["human_nats"])[None], Perplexity("").combine)
        properties = [stats.interval(score(m, texts, asked).stats[None], m.combine) for m in _PROPERTIES]
        cells = "", scores.spread(perplexity), *(scores.spread(one, 2) for one in properties)
        tally.rows.append((task, "human text", *cells))

    def _gap(self, theirs: Array, ours: Array) -> Interval:
        return stats.compare(theirs, ours, Mauve("").combine, self.margin, resamples=500).difference

    def _verdict(self, gaps: dict[str, Interval]) -> Verdict:
        parallel = {model: gap for model, gap in gaps.items() if model != self.hybrid}
        if not all(gap.low > self.margin for gap in parallel.values()):
            return "not seen"
        hybrid = gaps.get(self.hybrid)
        between = hybrid is not None and 0 < hybrid.value < min(gap.value for gap in parallel.values())
        return "holds" if between else "in part"

    def _void(self, of: Experiment, found: Found, task: str) -> str:
        ngram = found(of.trivial(task))["bits_per_byte"]
        own = scores.bits(found, of.likelihoods(of.claim.reference, task))
        value = stats.interval(own, scores.BITS.combine)
        if value.high < ngram:
            return ""
        return f"void on {task}: autoregression ({value.value:.2f} bits per byte) does not beat an n-gram ({ngram:.2f})"
