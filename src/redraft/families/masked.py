"""Masked diffusion: absorbing noise, a bidirectional network, the continuous-time bound."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families._vocabulary import vocabulary
from redraft.objectives._joint import Joint
from redraft.objectives.masked import Masked as Objective
from redraft.registry import find
from redraft.samplers.confidence import Confidence
from redraft.types import Attend, Sampler, Spec


@dataclass(frozen=True)
class Masked:
    """MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (Nie et al. 2025, arXiv:2502.09992).

    With a prompt, the prompt is isolated by default: it never sees the answer, so its keys and values are computed
    once and the output length is predicted from it (as in Mask-Predict, Ghazvininejad et al. 2019, arXiv:1904.09324).
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

    def __post_init__(self) -> None:
        if self.autoregressive and type(self) is not Masked:
            name = type(self).__name__.lower()
            raise UserError(f"family {name} takes no autoregressive loss beside its own.", "Leave it out.")

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            **vocabulary(tokenizer),
            attend=Attend("block", self.block) if self.block else Attend("full"),
            isolate_prompt=self.isolate_prompt,
            length_head=self.length_head,
            shift=self.shift,
            timed=self.timed,
            schedule=find("noise.schedules", self.schedule)(),
        )

    def objective(self) -> Objective:
        return Objective(
            steps=self.steps,
            weight=self.weight,
            length_weight=self.length_weight,
            label_smoothing=self.label_smoothing,
        )

    def training(self) -> Objective | Joint:
        objective = replace(self.objective(), low=self.low, high=self.high, complementary=self.complementary)
        return Joint(objective, self.autoregressive) if self.autoregressive else objective

    def sampler(self) -> Sampler:
        return Confidence()
