"""Texts that a trained model generates for the items of a task, in one way of decoding."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.texts import generate_texts
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data

BATCH = 32


@dataclass(frozen=True)
class Texts(Cell):
    """A text for every item of ``part``, with forward passes, counted work and memory."""

    trained: ModelCell
    data: Data  # whose items are asked
    part: str  # validation or test
    config: DecodingConfig
    new_tokens: int

    @property
    def label(self) -> str:
        one = self.trained
        return f"{self.part} texts of {one.model} on {self.data.task}, {self.config.label}, seed {one.seed}"

    @property
    def weight(self) -> float:
        rows = self.data.test_rows if self.part == "test" else self.data.validation_rows
        passes = min(self.config.steps or self.new_tokens, self.new_tokens)
        return 0.3 * rows * passes * max(8, self.new_tokens) * self.config.candidates

    def work(self, bench: Bench) -> dict[str, Any]:
        """Generate.

        Raises:
            UserError: the sampler refuses the setting.
        """
        items = self.data.items(bench.out, self.part)
        model = bench.model(self.trained.folder(bench.out))
        prompts = [item.asked for item in items]
        return dataclasses.asdict(generate_texts(model, prompts, self.config, self.new_tokens, BATCH))
