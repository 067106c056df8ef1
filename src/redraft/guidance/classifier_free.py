"""ClassifierFree: away from what would be written without the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.guidance._condition import without_prompt
from redraft.types import Canvas, Forward, Spec


@dataclass(frozen=True)
class ClassifierFree:
    """Ho and Salimans 2022 (arXiv:2207.12598); for masked diffusion Nie et al. 2024 (arXiv:2410.18514):

        guided = u + scale (c - u),    c with the prompt, u with its tokens masked

    ``scale`` 1 is off and costs nothing, 0 ignores the prompt, above 1 follows it more closely, at two passes instead
    of one. (LLaDA writes w = scale - 1.) Train with ``train.drop_prompt`` (0.1 or so), so that the model knows texts
    without prompts. The length of an answer, where it is chosen beforehand, is not guided. Without the prompt, a
    self-conditioned model isn't told its guess either, which was made with it.
    """

    scale: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise UserError(f"scale = {self.scale} must be a number of at least 0.", "1 is off.")

    def ready(self, tokenizer: Any) -> ClassifierFree:
        return self

    def expand(self, canvas: Canvas, ask: Forward, spec: Spec) -> list[Forward]:
        if self.scale == 1:
            return [ask]
        assert ask.rows is not None
        inside = (ask.pos >= 0) & (ask.pos < canvas.prompt[ask.rows, None])
        return [ask, replace(ask, x=without_prompt(ask.x, inside, spec), branch=ask.branch + 1, guess=None)]

    def combine(self, canvas: Canvas, ask: Forward, logits: list[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0]
        conditioned, free = (part.float() for part in logits)
        return torch.add(free, conditioned - free, alpha=self.scale)
