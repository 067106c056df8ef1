"""Hybrid: an autoregressive model with a diffusion drafter in the same network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.noise.schedules.linear import Linear
from redraft.objectives.hybrid import Hybrid as Objective
from redraft.objectives.wrappers.self_conditioned_blocks import SelfConditionedBlocks
from redraft.registry import find
from redraft.samplers.base import Sampler
from redraft.samplers.draft_verify import DraftVerify
from redraft.samplers.renoising import Renoising
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec
from redraft.types.spec import WHOLE


@dataclass(frozen=True)
class Hybrid(Family):
    """TiDAR (Liu et al. 2025, arXiv:2511.08923): one network, trained on next-token prediction and block diffusion.

    The output is that of the autoregressive model, token for token; better drafts need fewer forward passes. An
    autoregressive checkpoint can be fine-tuned into this family.

    With the process ``uniform``, noise consists of random tokens, and the network learns every token of a block, as
    DiffusionGemma does. Its blocks are not drafts to be verified: ``renoising`` writes them. With ``self_condition``
    (0.5 is usual), the network also reads its previous prediction of the block, a mean embedding over the vocabulary.
    """

    citation = "arXiv:2511.08923"
    summary = "one network, autoregressive and block diffusion; drafts in parallel, verifies left to right"

    block: int = 8
    diffusion: float = 0.3  # weight of the diffusion loss relative to the autoregressive loss
    rate_min: float = 0.5  # masking rates in training are drawn from (rate_min, 1]
    prompt_encoder: bool = True
    label_smoothing: float = 0.0
    process: Literal["absorbing", "uniform"] = "absorbing"  # noise: masks, or random tokens
    self_condition: float = 0.0  # share of training rows with self-conditioning; 0: no self-conditioning

    def __post_init__(self) -> None:
        if not 0 <= self.self_condition <= 1:
            raise UserError(
                f"family hybrid: self_condition = {self.self_condition} must be between 0 and 1.", "For example 0.5."
            )
        if self.self_condition and self.process == "absorbing":
            raise UserError("family hybrid: self_condition needs the process uniform.", "Leave out self_condition.")

    def spec(self, tokenizer: Tokenizer) -> Spec:
        spec = Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(
                attention=AttentionPattern("causal"),
                prompt_encoder=self.prompt_encoder,
                shift=1,
                self_conditioning=WHOLE if self.self_condition else 0,
            ),
            family=FamilyFacts(),
        )
        drafts = spec.with_network(shift=0, attention=AttentionPattern("causal", self.block))  # the size of a draft
        process = find("noise", self.process)()
        return spec.with_family(drafter=drafts.with_family(schedule=Linear(), process=process))

    def objective(self) -> Objective:
        return Objective(
            block=self.block, diffusion=self.diffusion, rate_min=self.rate_min, label_smoothing=self.label_smoothing
        )

    def training(self) -> Objective | SelfConditionedBlocks:
        """The sum of both losses, with passes for self-conditioning before it where they are needed."""
        plain = self.objective()
        return SelfConditionedBlocks(plain, self.self_condition) if self.self_condition else plain

    def sampler(self) -> Sampler:
        return DraftVerify(block=self.block) if self.process == "absorbing" else Renoising(block=self.block)
