"""The label of every item of a classification task, chosen by its likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.errors import UserError
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data

_MOST = 20  # labels


@dataclass(frozen=True)
class Choices(Cell):
    """The likeliest of the labels of the training rows: log p(label, end of text | input), or its bound."""

    trained: ModelCell
    data: Data
    part: str
    samples: int = 16

    @property
    def label(self) -> str:
        one = self.trained
        return f"{self.part} labels by likelihood of {one.model} on {self.data.task}, seed {one.seed}"

    @property
    def weight(self) -> float:
        rows = self.data.test_rows if self.part == "test" else self.data.validation_rows
        return 0.3 * rows * self.data.length * self.samples

    def work(self, bench: Bench) -> dict[str, Any]:
        """Rank the labels.

        Raises:
            UserError: the answers are no labels.
        """
        labels = sorted({example.target for example in self.data.examples(bench.out, "train")})
        if not 2 <= len(labels) <= _MOST:
            what = f"The task '{self.data.task}' has {len(labels)} different answers, which are no labels."
            raise UserError(what, f"Give a task with 2 to {_MOST} labels.")
        model = bench.model(self.trained.folder(bench.out))
        ranked = [
            model.rank(item.prompt, labels, samples=self.samples) for item in self.data.items(bench.out, self.part)
        ]
        return {"texts": [one[0].option for one in ranked], "labels": labels}
