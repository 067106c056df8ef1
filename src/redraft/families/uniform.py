"""Uniform diffusion: tokens turn into random tokens, and every token may be corrected until the end."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.data.tokenizer import Tokenizer
from redraft.families._vocabulary import vocabulary
from redraft.objectives.uniform import Uniform as Objective
from redraft.registry import find
from redraft.samplers.posterior import Posterior
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Uniform:
    """UDLM (Schiff et al. 2024, arXiv:2412.10193) and Duo without its curriculum (Sahoo et al. 2025, 2506.10892).

    The network isn't told the time unless ``timed``: the text shows how noisy it is, and an isolated prompt keeps its
    cache. Prompt and length as in ``Masked``.
    """

    citation = "arXiv:2412.10193, arXiv:2506.10892"
    summary = "random tokens for noise; every token stays open to correction until the last step"

    schedule: str = "cosine"  # a bound varies less between draws than with linear, whose lightest noise weighs 1/t
    timed: bool = False
    isolate_prompt: bool = True
    length_head: bool = True
    length_weight: float = 0.1
    low: float = 0.0  # training draws times from [low, high]; what is reported is always the whole bound
    high: float = 1.0

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("full"),
            isolate_prompt=self.isolate_prompt,
            length_head=self.length_head,
            shift=0,
            timed=self.timed,
            schedule=find("noise.schedules", self.schedule)(),
            process="uniform",
        )

    def objective(self) -> Objective:
        return Objective(length_weight=self.length_weight)

    def training(self) -> Objective:
        return Objective(length_weight=self.length_weight, low=self.low, high=self.high)

    def sampler(self) -> Posterior:
        return Posterior()
