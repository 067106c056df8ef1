"""Masked diffusion: absorbing noise, a bidirectional network and the bound in continuous time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import Conversion, Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.noise.absorbing import Absorbing
from redraft.objectives.masked import Masked as Objective
from redraft.objectives.wrappers.joint import Joint
from redraft.objectives.wrappers.self_conditioned import SelfConditioned
from redraft.registry import find
from redraft.samplers.base import Sampler
from redraft.samplers.confidence import Confidence
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class Masked(Family):
    """MDLM (Sahoo et al. 2024, arXiv:2406.07524) and LLaDA (Nie et al. 2025, arXiv:2502.09992).

    Prompts are isolated by default: they never attend to the answer, so their keys and values are computed once, and
    the output length is predicted from them (as in Mask-Predict, Ghazvininejad et al. 2019, arXiv:1904.09324).

    With ``self_condition`` (0.5 is usual), the network reads its previous prediction at every masked position (Chen et
    al. 2022, arXiv:2208.04202). It takes a sixth more operations in training and very few in sampling.
    """

    citation = "arXiv:2406.07524, arXiv:2502.09992"
    summary = "absorbing noise, bidirectional network; generates in parallel, most confident positions first"

    schedule: str = "linear"
    steps: int = 0  # 0: continuous time; T > 0: the discrete-time bound at T steps
    weight: Literal["bound", "uniform"] = (
        "uniform"  # what is minimised: the bound, or equal weight for all noise levels
    )
    timed: bool = False
    prompt_encoder: bool = True
    length_head: bool = True
    length_weight: float = 0.1
    label_smoothing: float = 0.0
    t_min: float = 0.0  # training draws times from [t_min, t_max]; the reported bound is always that of [0, 1]
    t_max: float = 1.0
    train_steps: int = 0  # T > 0: training draws t from T discrete steps; the reported bound is still that of ``steps``
    complementary: bool = False  # train on every row twice, with complementary sets of masked positions
    shift: Literal[0, 1] = 0  # 1: position p is predicted at p - 1, as in models converted from autoregressive ones
    block: int = 0  # 0: full attention; otherwise each block attends to itself and to earlier blocks
    autoregressive: float = 0.0  # weight of an additional next-token loss in training; needs shift 1
    self_condition: float = 0.0  # share of training rows with self-conditioning; 0: no self-conditioning
    self_condition_tokens: int = (
        3  # self-conditioning: number of most likely tokens that the network reads per position
    )

    def __post_init__(self) -> None:
        name = type(self).__name__.lower()
        if self.autoregressive and type(self) is not Masked:
            raise UserError(
                f"family {name}: an autoregressive loss is not supported.", "Leave autoregressive out, or use masked."
            )
        if not 0 <= self.self_condition <= 1:
            raise UserError(
                f"family {name}: self_condition = {self.self_condition} must be between 0 and 1.", "For example 0.5."
            )
        if self.self_condition_tokens < 1:
            raise UserError(f"family {name}: self_condition_tokens = {self.self_condition_tokens} must be at least 1.")
        if self.self_condition and (self.autoregressive or type(self) is not Masked):
            other = "an autoregressive loss" if self.autoregressive else f"family {name}"
            raise UserError(f"Self-conditioning can't be combined with {other}.", "Leave out self_condition.")

    @property
    def conversion(self) -> Conversion:
        """Objectives with a clean copy of the text, or with rollouts, have no curriculum."""
        at_once = self.autoregressive > 0 or any(phase.objective.needs_rollout for phase in self.phases())
        return Conversion(curricula=() if at_once else ("anneal", "blocks"))

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(
                attention=AttentionPattern("block", self.block) if self.block else AttentionPattern("full"),
                prompt_encoder=self.prompt_encoder,
                length_head=self.length_head,
                shift=self.shift,
                timed=self.timed,
                self_conditioning=self.self_condition_tokens if self.self_condition else 0,
            ),
            family=FamilyFacts(schedule=find("noise.schedules", self.schedule)(), process=Absorbing()),
        )

    def objective(self) -> Objective | SelfConditioned:
        return self._self_conditioned(
            Objective(
                steps=self.steps,
                weight=self.weight,
                length_weight=self.length_weight,
                label_smoothing=self.label_smoothing,
            )
        )

    def training(self) -> Objective | Joint | SelfConditioned:
        scored = self.objective()
        plain = scored.inner if isinstance(scored, SelfConditioned) else scored
        objective = replace(
            plain,
            t_min=self.t_min,
            t_max=self.t_max,
            complementary=self.complementary,
            steps=self.train_steps or self.steps,
        )
        return Joint(objective, self.autoregressive) if self.autoregressive else self._self_conditioned(objective)

    def _self_conditioned(self, objective: Objective) -> Objective | SelfConditioned:
        return (
            SelfConditioned(objective, self.self_condition, self.self_condition_tokens)
            if self.self_condition
            else objective
        )

    def sampler(self) -> Sampler:
        return Confidence()
