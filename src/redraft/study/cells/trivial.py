"""Texts of trivial systems for the test items of a task, and the bits per byte of an n-gram model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.compare import baselines
from redraft.evaluation.items import sample
from redraft.study.cells.base import Bench, Cell
from redraft.study.cells.data import Data


@dataclass(frozen=True)
class Trivial(Cell):
    """What copying the input, the nearest training example and (for labels) the most common answer achieve."""

    data: Data

    @property
    def label(self) -> str:
        return f"trivial baselines of {self.data.task}"

    def work(self, bench: Bench) -> dict[str, Any]:
        """Retrieve, and count n-grams."""
        items, train = self.data.items(bench.out, "test"), self.data.examples(bench.out, "train")
        test = sample(self.data.examples(bench.out, "test"), self.data.test_rows)
        texts: dict[str, list[str]] = {}
        if self.data.paired:
            prompts, targets = [item.prompt for item in items], [e.target for e in train]
            texts["copying the input"] = baselines.copy_input(prompts)
            texts["the nearest training example"] = baselines.nearest(prompts, [e.prompt or "" for e in train], targets)
            texts["the most common answer"] = baselines.most_common(targets, len(prompts))
        model = baselines.NgramModel.fit([e.target for e in train])
        return {"texts": texts, "order": model.order, "bits_per_byte": model.bits_per_byte([e.target for e in test])}
