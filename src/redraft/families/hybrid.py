"""Hybrid: an autoregressive model with a diffusion drafter in the same network."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.families.base import Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.noise.absorbing import Absorbing
from redraft.noise.schedules.linear import Linear
from redraft.objectives.hybrid import Hybrid as Objective
from redraft.samplers.draft_verify import DraftVerify
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Hybrid(Family):
    """TiDAR (Liu et al. 2025, arXiv:2511.08923): one network, trained on next-token prediction and block diffusion.

    The output is that of the autoregressive model, token for token; better drafts need fewer forward passes. An
    autoregressive checkpoint can be fine-tuned into this family.
    """

    citation = "arXiv:2511.08923"
    summary = "one network, autoregressive and block diffusion; drafts in parallel, verifies left to right"

    block: int = 8
    diffusion: float = 0.3  # weight of the diffusion loss relative to the autoregressive loss
    rate_min: float = 0.5  # masking rates in training are drawn from (rate_min, 1]
    prompt_encoder: bool = True
    label_smoothing: float = 0.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        spec = Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(attention=AttentionPattern("causal"), prompt_encoder=self.prompt_encoder, shift=1),
            family=FamilyFacts(),
        )
        drafts = spec.with_network(shift=0, attention=AttentionPattern("causal", self.block))  # the size of a draft
        return spec.with_family(drafter=drafts.with_family(schedule=Linear(), process=Absorbing()))

    def objective(self) -> Objective:
        return Objective(
            block=self.block, diffusion=self.diffusion, rate_min=self.rate_min, label_smoothing=self.label_smoothing
        )

    def sampler(self) -> DraftVerify:
        return DraftVerify(block=self.block)
