"""The negative log-likelihood of test rows under a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.data.loader import batches
from redraft.data.tokenising import tokenise
from redraft.evaluation.items import sample
from redraft.generation.prompts import longest
from redraft.likelihood import bound
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data

_TOKENS = 4096  # of one forward pass


@dataclass(frozen=True)
class Likelihood(Cell):
    """Nats of every test row: exact, or a bound with its Monte-Carlo error."""

    trained: ModelCell
    data: Data
    samples: int = 8

    @property
    def label(self) -> str:
        one = self.trained
        return f"likelihood of {one.model} on {self.data.task}, seed {one.seed}"

    @property
    def weight(self) -> float:
        return 0.3 * self.data.test_rows * self.data.length * self.samples

    def work(self, bench: Bench) -> dict[str, Any]:
        """Score the rows."""
        model = bench.model(self.trained.folder(bench.out))
        rows = sample(self.data.examples(bench.out, "test"), self.data.test_rows)
        length = min(self.data.length, longest(model) - 1)
        made = batches(tokenise(rows, model.tokenizer), model.tokenizer, length, max(_TOKENS, length + 1), "skip")
        found = bound(model.network, made, model.family.objective(), model.spec, self.samples, 0)
        return {
            "nats": list(found.rows),
            "bytes": [int(n) for batch in made for n in batch.bytes.tolist()],
            "tokens": found.tokens,
            "is_bound": found.is_bound,
            "error": found.bits_per_byte_stderr,
            "samples": found.samples,
        }
