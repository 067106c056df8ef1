"""SEDD: scores instead of predictions, learned by score entropy, for masks or for uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.families._vocabulary import vocabulary
from redraft.objectives.score import Score
from redraft.registry import find
from redraft.samplers.analytic import Analytic
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class Sedd:
    """Lou et al. 2024 (arXiv:2310.16834). Prompt and length as in ``Masked``.

    The paper tells the network the noise level: ``timed``. Off by default, as in the families it is compared with.
    """

    citation = "arXiv:2310.16834"
    summary = "score entropy: ratios of probabilities, unnormalised; absorbing or uniform noise"

    process: Literal["absorbing", "uniform"] = "absorbing"
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
            process=self.process,
            score=True,
        )

    def objective(self) -> Score:
        return Score(length_weight=self.length_weight)

    def training(self) -> Score:
        return Score(length_weight=self.length_weight, low=self.low, high=self.high)

    def sampler(self) -> Analytic:
        return Analytic()
