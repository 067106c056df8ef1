"""Uniform diffusion: noise replaces tokens by random tokens, and every token may be corrected until the last step."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.families.base import Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.noise.uniform import Uniform as UniformNoise
from redraft.objectives.uniform import Uniform as Objective
from redraft.registry import find
from redraft.samplers.posterior import Posterior
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Uniform(Family):
    """UDLM (Schiff et al. 2024, arXiv:2412.10193), and Duo (Sahoo et al. 2025, arXiv:2506.10892) without curriculum.

    The network has no time conditioning unless ``timed``: the noise level can be inferred from the sequence, and the
    cache of an isolated prompt stays valid. Prompt and length are treated as in ``Masked``.
    """

    citation = "arXiv:2412.10193, arXiv:2506.10892"
    summary = "random tokens as noise; every token may be corrected until the last step"

    schedule: str = "cosine"  # the bound has less variance than with linear, which weights low noise by 1/t
    timed: bool = False
    prompt_encoder: bool = True
    length_head: bool = True
    length_weight: float = 0.1
    t_min: float = 0.0  # training draws times from [t_min, t_max]; the reported bound is always that of [0, 1]
    t_max: float = 1.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(
                attention=AttentionPattern("full"),
                prompt_encoder=self.prompt_encoder,
                length_head=self.length_head,
                timed=self.timed,
            ),
            family=FamilyFacts(schedule=find("noise.schedules", self.schedule)(), process=UniformNoise()),
        )

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight)

    def training(self) -> Objective:
        return Objective(length_weight=self.length_weight, t_min=self.t_min, t_max=self.t_max)

    def sampler(self) -> Posterior:
        return Posterior()
