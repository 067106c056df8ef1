"""SEDD: the network predicts probability ratios (scores), trained by score entropy, for absorbing or uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.families.base import Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.objectives.score import Score
from redraft.registry import find
from redraft.samplers.analytic import Analytic
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Sedd(Family):
    """Lou et al. 2024 (arXiv:2310.16834). Prompt and length are treated as in ``Masked``.

    The paper conditions the network on the noise level: ``timed``. Here it is off by default, as in other families.
    """

    citation = "arXiv:2310.16834"
    summary = "score entropy: ratios of probabilities, unnormalised; absorbing or uniform noise"

    process: Literal["absorbing", "uniform"] = "absorbing"
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
                outputs="log_scores",
            ),
            family=FamilyFacts(
                schedule=find("noise.schedules", self.schedule)(), process=find("noise", self.process)()
            ),
        )

    def objective(self) -> Score:
        return Score(length_weight=self.length_weight)

    def training(self) -> Score:
        return Score(length_weight=self.length_weight, t_min=self.t_min, t_max=self.t_max)

    def sampler(self) -> Analytic:
        return Analytic()
