"""ClassifierFree: guidance away from the prediction without the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redraft.guidance.base import Guidance, GuidanceOptions
from redraft.guidance.shared.condition import without_prompt
from redraft.options import setting
from redraft.types import Canvas, Request, SelfConditioning, Spec


@dataclass(frozen=True)
class ClassifierFree(GuidanceOptions, Guidance):
    """Ho and Salimans 2022 (arXiv:2207.12598); for masked diffusion Nie et al. 2024 (arXiv:2410.18514):

        guided = u + scale (c - u)

    where c are the logits with the prompt, and u those with the prompt's tokens masked.

    ``scale`` 1 is off and costs nothing, 0 ignores the prompt, and values above 1 follow it more closely, with two
    passes instead of one. (LLaDA writes w = scale - 1.) Train with ``train.drop_prompt`` (about 0.1), so that the model
    also learns texts without prompts. The prediction of the output length is not guided. In a self-conditioned model
    the pass without the prompt gets no previous prediction, because that was computed with the prompt.
    """

    scale: float = setting(2.0, "Strength; 1 is off, 0 ignores the prompt.", least=0, most=1000)

    def with_tokenizer(self, tokenizer: Any) -> ClassifierFree:
        return self

    def expand(self, canvas: Canvas, request: Request, spec: Spec) -> list[Request]:
        if self.scale == 1:
            return [request]
        inside = (request.positions >= 0) & (request.positions < canvas.prompt[request.rows, None])
        tokens = without_prompt(request.tokens, inside, spec)
        extra = tuple(each for each in request.extra if not isinstance(each, SelfConditioning))
        unconditional = replace(request, tokens=tokens, extra=extra).with_cache(branch=request.cache.branch + 1)
        return [request, unconditional]

    def combine(self, canvas: Canvas, request: Request, logits: list[Tensor]) -> Tensor:
        if len(logits) == 1:
            return logits[0]
        paired, unconditional = (part.float() for part in logits)
        return torch.add(unconditional, paired - unconditional, alpha=self.scale)
