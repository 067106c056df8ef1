"""Continuations of plain texts, judged by an independent model: their likelihood, and MAUVE against human texts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.texts import generate_texts
from redraft.metrics.mauve import Mauve
from redraft.metrics.perplexity import Perplexity
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data
from redraft.study.cells.texts import BATCH


@dataclass(frozen=True)
class Judged(Cell):
    """Texts of one way of decoding, with the sufficient statistics of perplexity and MAUVE under the judge.

    The judge is an autoregressive model of another seed, trained on the same data for longer or at a larger size. The
    human texts are the continuations in the data.
    """

    trained: ModelCell
    judge: ModelCell
    data: Data
    config: DecodingConfig
    new_tokens: int

    @property
    def label(self) -> str:
        one = self.trained
        return f"judged texts of {one.model} on {self.data.task}, {self.config.label}, seed {one.seed}"

    @property
    def weight(self) -> float:
        passes = min(self.config.steps or self.new_tokens, self.new_tokens)
        return 0.3 * self.data.test_rows * passes * self.new_tokens

    def work(self, bench: Bench) -> dict[str, Any]:
        """Generate and judge."""
        items = self.data.items(bench.out, "test")
        model = bench.model(self.trained.folder(bench.out))
        run = generate_texts(model, [item.asked for item in items], self.config, self.new_tokens, BATCH)
        references = [list(item.references) for item in items]
        human = [item.references[0] for item in items]
        judge = str(self.judge.folder(bench.out))
        perplexity, mauve = Perplexity(judge, str(bench.device)), Mauve(judge, str(bench.device))
        judged = mauve.statistics(run.texts, references).tolist() if len(items) >= mauve.least else None
        return {
            **dataclasses.asdict(run),
            "nats": perplexity.statistics(run.texts, references).tolist(),
            "human_nats": perplexity.statistics(human, references).tolist(),
            "mauve": judged,
        }
