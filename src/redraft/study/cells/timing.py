"""Seconds of several models and ways of decoding, in turns on the same prompts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from redraft.evaluation.decoding import DecodingConfig
from redraft.evaluation.timing import time_in_turns
from redraft.study.cells.base import Bench, Cell, ModelCell
from redraft.study.cells.data import Data


@dataclass(frozen=True)
class Timing(Cell):
    """Every runner takes the same batch of prompts in turn. Each call's seconds and tokens are kept.

    One turn before the first is a warm-up and is not counted. Tokens are those after the prompt, end-of-text included.
    """

    alone: ClassVar[bool] = True

    data: Data
    trained: tuple[ModelCell, ...]
    configs: tuple[DecodingConfig, ...]
    new_tokens: tuple[int, ...]
    batch: int
    calls: int = 8

    @property
    def label(self) -> str:
        return f"times on {self.data.task} at batch {self.batch}, {len(self.configs)} ways, seed {self.trained[0].seed}"

    @property
    def weight(self) -> float:
        passes = sum(min(c.steps or n, n) * n for c, n in zip(self.configs, self.new_tokens, strict=True))
        return 0.4 * (self.calls + 1) * self.batch * passes

    def work(self, bench: Bench) -> dict[str, Any]:
        """Measure."""
        models = [bench.model(one.folder(bench.out)) for one in self.trained]
        prompts = [item.asked for item in self.data.items(bench.out, "test")]
        runners = list(zip(models, self.configs, strict=True))
        timed = time_in_turns(runners, prompts, self.batch, self.calls, list(self.new_tokens))
        return {
            "entries": [dataclasses.asdict(one) for one in timed],
            "warm_up": 1,
            "calls": self.calls,
            "counting": "tokens after the prompt, end-of-text included",
        }
