"""Masked diffusion: absorbing noise, a bidirectional network, the continuous-time bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families._vocabulary import vocabulary
from redraft.objectives._joint import Joint
from redraft.objectives._told import Told
from redraft.objectives.masked import Masked as Objective
from redraft.registry import find
from redraft.samplers.confidence import Confidence
from redraft.types import Attend, Sampler, Spec


@dataclass(frozen=True)
class Masked:
    """MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (Nie et al. 2025, arXiv:2502.09992).

    With a prompt, the prompt is isolated by default: it never sees the answer, so its keys and values are computed
    once and the output length is predicted from it (as in Mask-Predict, Ghazvininejad et al. 2019, arXiv:1904.09324).

    With ``self_condition`` (0.5 is usual) the network is also told, at every position still hidden, what it predicted
    there last (Chen et al. 2022, arXiv:2208.04202): a sixth more arithmetic in training, next to nothing in sampling.
    """

    citation = "arXiv:2406.07524, arXiv:2502.09992"
    summary = "absorbing noise, bidirectional network; drafts in parallel, redrafts by confidence"

    schedule: str = "linear"
    steps: int = 0  # 0: continuous time; T > 0: the discrete-time bound at T steps
    weight: Literal["bound", "flat"] = "flat"  # what is minimised: the likelihood bound, or every noise level alike
    timed: bool = False
    isolate_prompt: bool = True
    length_head: bool = True
    length_weight: float = 0.1
    label_smoothing: float = 0.0
    low: float = 0.0  # training draws times from [low, high]; what is reported is always the whole bound
    high: float = 1.0
    complementary: bool = False  # train on every row twice, the second time with what was hidden shown
    shift: Literal[0, 1] = 0  # 1: predictions stand one position earlier, as in the autoregressive model it once was
    block: int = 0  # 0: every position sees every other; else those of its own block and of the blocks before it
    autoregressive: float = 0.0  # weight in training of next-token prediction beside it; needs shift 1
    self_condition: float = 0.0  # share of training rows told what the network predicts itself; 0: it never is
    guesses: int = 3  # likeliest tokens of its last prediction that a self-conditioned network is told

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.autoregressive and type(self) is not Masked:
            raise UserError(f"family {name} takes no autoregressive loss beside its own.", "Leave it out.")
        if not 0 <= self.self_condition <= 1:
            raise UserError(f"family {name}: self_condition = {self.self_condition} is no share.", "For example 0.5.")
        if self.guesses < 1:
            raise UserError(f"family {name}: guesses = {self.guesses} must be at least 1.")
        if self.self_condition and (self.autoregressive or type(self) is not Masked):
            own = "an autoregressive loss beside it" if self.autoregressive else f"family {name}"
            raise UserError(f"self-conditioning and {own} don't go together.", "Leave out self_condition.")

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("block", self.block) if self.block else Attend("full"),
            isolate_prompt=self.isolate_prompt,
            length_head=self.length_head,
            shift=self.shift,
            timed=self.timed,
            schedule=find("noise.schedules", self.schedule)(),
            guesses=self.guesses if self.self_condition else 0,
        )

    def objective(self) -> Objective | Told:
        return self._told(
            Objective(
                steps=self.steps,
                weight=self.weight,
                length_weight=self.length_weight,
                label_smoothing=self.label_smoothing,
            )
        )

    def training(self) -> Objective | Joint | Told:
        scored = self.objective()
        plain = scored.inner if isinstance(scored, Told) else scored
        objective = replace(plain, low=self.low, high=self.high, complementary=self.complementary)
        return Joint(objective, self.autoregressive) if self.autoregressive else self._told(objective)

    def _told(self, objective: Objective) -> Objective | Told:
        return Told(objective, self.self_condition, self.guesses) if self.self_condition else objective

    def sampler(self) -> Sampler:
        return Confidence()
