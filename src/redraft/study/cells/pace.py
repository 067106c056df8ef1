"""Seconds of writing texts of a fixed length with random weights, autoregressively and by masked diffusion."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch

from redraft import runtime
from redraft.bench import rounds
from redraft.data.vocabulary import Ids, Vocabulary
from redraft.model import Model
from redraft.presets import preset
from redraft.study.cells.base import Bench, Cell

BASELINE = "autoregressive"
_BLOCK = 32  # positions of a block under the approximate cache


@dataclass(frozen=True)
class Pace(Cell):
    """All candidates take turns. End-of-text is a token like any other, so that every text has the same length.

    Candidates: autoregression with its key-value cache; masked diffusion with each number of steps, with full passes;
    and, if the text has several blocks, block by block with the dual cache (arXiv:2505.22618), which is approximate.
    """

    alone: ClassVar[bool] = True

    preset: str
    vocab_size: int
    prompt: int
    new_tokens: int
    steps: tuple[int, ...]
    batch: int
    calls: int = 4

    @property
    def label(self) -> str:
        return f"times of {self.new_tokens} tokens at batch {self.batch}, shape {self.preset}"

    @property
    def weight(self) -> float:
        return 0.3 * (self.calls + 1) * self.batch * self.new_tokens * (1 + sum(self.steps))

    def work(self, bench: Bench) -> dict[str, Any]:
        """Measure."""
        found: dict[str, Callable[[], object]] = {}
        causal, full = self._model("autoregressive", bench), self._model("masked", bench)
        found[BASELINE] = partial(self._write, causal, {})
        for steps in self.steps:
            found[f"masked, {steps} steps"] = partial(self._write, full, {"steps": steps})
            blocks = self.new_tokens // _BLOCK
            if self.new_tokens % _BLOCK == 0 and 1 < blocks <= steps:
                options = {"steps": steps, "options": {"block": _BLOCK}, "cache": "dual"}
                found[f"masked, {steps} steps, dual cache"] = partial(self._write, full, options)
        seconds = rounds(found, self.calls, lambda line: None)
        return {
            "seconds": seconds,
            "parameters": full.network.parameter_count,
            "steps": {name: self._steps(name) for name in found},
            "warm_up": 1,
            "weights": "random",
        }

    def _steps(self, name: str) -> int:
        """Forward passes of a candidate."""
        return self.new_tokens if name == BASELINE else int(name.split(", ")[1].split()[0])

    def _model(self, family: str, bench: Bench) -> Model:
        special = Ids(self.vocab_size, pad=0, eos=1, bos=2, mask=3, sep=4, forbidden=(0, 2, 3, 4))
        shape = preset(self.preset, self.vocab_size, max_length=self.prompt + self.new_tokens + 8)
        model = Model.fresh({"name": family}, Vocabulary(special), shape, paired=False)
        model.network.requires_grad_(False).to(bench.device, runtime.weight_type(None, bench.device))
        return model

    def _write(self, model: Model, changed: dict[str, Any]) -> None:
        settings = model.settings(max_new_tokens=self.new_tokens, ignore_eos=True, **changed)
        prompt = torch.randint(5, self.vocab_size, (self.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
        for _ in model.start([prompt] * self.batch, settings):
            pass
        runtime.synchronise(model.network.device)
