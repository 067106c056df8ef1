"""OneStep: every token of the text predicted at once, from an empty answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from redraft.guidance.shared.condition import without_prompt
from redraft.objectives.masked import Masked, MaskedBatch
from redraft.objectives.shared.noise import noisable
from redraft.options import check, setting
from redraft.posttraining.shared.copies import OfMasks
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class OneStep(OfMasks):
    """The mean field of diffu-GRPO (d1, arXiv:2504.12216): sum_i -log p(y_i | x', all of y hidden), with some tokens of
    the prompt hidden at random in x'.

    It takes one row and bounds nothing. What the network knows of the context within a text gets no gradient from it.
    It is here as the baseline that other estimators are compared with.
    """

    prompt_mask: float = setting(0.15, "Share of the prompt's tokens that are hidden.", least=0, most=1)

    def __post_init__(self) -> None:
        check(self)

    def rows(self, tokens: int) -> int:
        """One."""
        return 1

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        hidden = noisable(batch, spec)
        draw = torch.rand(batch.ids.shape, generator=generator, device=generator.device).to(hidden.device)
        inside = batch.valid & ~batch.target & (draw < self.prompt_mask)
        noisy = replace(batch, ids=without_prompt(batch.ids, inside, spec))
        one = torch.ones(len(hidden), device=hidden.device)
        return Masked().request(noisy, spec, hidden, one, one)
