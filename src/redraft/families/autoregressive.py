"""Autoregressive: p(x) = prod_i p(x_i | x_<i). Diffusion families are compared with it."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.families.base import Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.objectives.autoregressive import Autoregressive as Objective
from redraft.samplers.autoregressive import Autoregressive as Sampler
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Autoregressive(Family):
    """Left-to-right language model (Radford et al. 2019): exact likelihood, one token per forward pass, KV cache."""

    citation = "Radford et al. 2019"
    summary = "left to right, exact likelihood; the baseline"

    prompt_encoder: bool = True  # full attention within the prompt, as in an encoder-decoder; False: causal throughout
    label_smoothing: float = 0.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(attention=AttentionPattern("causal"), prompt_encoder=self.prompt_encoder, shift=1),
            family=FamilyFacts(),
        )

    def objective(self) -> Objective:
        return Objective(label_smoothing=self.label_smoothing)

    def sampler(self) -> Sampler:
        return Sampler()
