"""Block diffusion: left to right over blocks, masked diffusion within each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import Conversion, Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.linear import Linear
from redraft.objectives.block import Block as Objective
from redraft.samplers.confidence import Confidence
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Block(Family):
    """BD3-LM (Arriola et al. 2025, arXiv:2503.09573): between autoregressive (block 1) and masked diffusion.

    Fast-dLLM v2 (Wu et al. 2025, arXiv:2509.26328) is ``weight = "uniform"``, ``complementary = true``,
    ``padding = "mask"`` and ``shift = 1``, from an autoregressive checkpoint.

    A finished block never changes and doesn't attend to later positions, so its keys and values can be cached exactly,
    and a sequence grows block by block until end-of-text. With a prompt, blocks are counted from the end of the prompt,
    and the prompt is a separate attention group.
    """

    citation = "arXiv:2503.09573"
    summary = "blocks left to right, masked diffusion within a block; exact cache, text of any length"

    block: int = 16
    rate_min: float = 0.0  # masking rates in training are drawn from (rate_min, rate_max]
    rate_max: float = 1.0
    search: bool = False  # choose rate_min and rate_max by the variance of the validation loss
    weight: Literal["bound", "uniform"] = "bound"
    prompt_encoder: bool = True
    shift: Literal[0, 1] = 0  # 1: position p is predicted at p - 1, as in models converted from autoregressive ones
    label_smoothing: float = 0.0
    complementary: bool = False  # train on every row twice, with complementary sets of masked positions
    padding: Literal["end", "mask"] = "end"  # behind an answer: end-of-text tokens, or masks that are not learnt

    def __post_init__(self) -> None:
        if self.block < 1:
            raise UserError(f"family block: block = {self.block} must be at least 1.")

    @property
    def conversion(self) -> Conversion:
        return Conversion(curricula=("blocks",))

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(
                attention=AttentionPattern("block", self.block), prompt_encoder=self.prompt_encoder, shift=self.shift
            ),
            family=FamilyFacts(schedule=Linear(), process=Absorbing()),
        )

    def objective(self) -> Objective:
        return Objective(
            rate_min=self.rate_min,
            rate_max=self.rate_max,
            search=self.search,
            weight=self.weight,
            label_smoothing=self.label_smoothing,
            complementary=self.complementary,
            padding=self.padding,
        )

    def sampler(self) -> Confidence:
        return Confidence()
