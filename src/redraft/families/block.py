"""Block diffusion: left to right over blocks, masked diffusion within each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families._vocabulary import vocabulary
from redraft.noise.schedules.linear import Linear
from redraft.objectives.block import Block as Objective
from redraft.samplers.confidence import Confidence
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Block:
    """BD3-LM (Arriola et al. 2025, arXiv:2503.09573): between autoregressive (block 1) and masked diffusion.

    A written block never changes and never sees what follows it, so its keys and values are kept without error, and
    a text grows block by block until its end-of-text. With a prompt, blocks are counted from the prompt's end, and the
    prompt is one stage of its own.
    """

    citation = "arXiv:2503.09573"
    summary = "blocks left to right, masked diffusion within a block; exact cache, text of any length"

    block: int = 16
    low: float = 0.0  # masking rates met in training: (low, high]
    high: float = 1.0
    search: bool = False  # choose low and high by the variance of the validation loss
    weight: Literal["bound", "flat"] = "bound"
    isolate_prompt: bool = True
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.block < 1:
            raise UserError(f"family block: block = {self.block} must be at least 1.")

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("block", self.block),
            isolate_prompt=self.isolate_prompt,
            length_head=False,
            shift=0,
            timed=False,
            schedule=Linear(),
        )

    def objective(self) -> Objective:
        return Objective(
            low=self.low,
            high=self.high,
            search=self.search,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
        )

    def sampler(self) -> Confidence:
        return Confidence()
