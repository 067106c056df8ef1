"""D3PM: diffusion in T discrete steps, with absorbing or uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families.base import Family
from redraft.families.shared.vocabulary import vocabulary
from redraft.objectives.masked import Masked
from redraft.objectives.uniform import Uniform
from redraft.registry import find
from redraft.samplers.ancestral import Ancestral
from redraft.samplers.posterior import Posterior
from redraft.types import AttentionPattern, FamilyFacts, NetworkFacts, Spec


@dataclass(frozen=True)
class D3pm(Family):
    """Austin et al. 2021 (arXiv:2107.03006): the variational bound of a chain of ``steps`` steps, with the paper's
    x_0-parameterisation, without its auxiliary loss, and with mask probability 0 (as in MDLM, arXiv:2406.07524).

    The bound is looser with fewer steps; its limit is that of ``masked`` or ``uniform``. The same network can be scored
    with either family, so use one of them to compare trained models.
    """

    citation = "arXiv:2107.03006"
    summary = "a chain of T discrete steps; absorbing or uniform noise"

    process: Literal["absorbing", "uniform"] = "absorbing"
    steps: int = 1000
    schedule: str = "cosine"  # the bound has less variance than with linear, which weights low noise by 1/t
    timed: bool = False
    prompt_encoder: bool = True
    length_head: bool = True
    length_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(
                f"family d3pm: steps = {self.steps} must be at least 1.", "Use family masked for continuous time."
            )

    def spec(self, tokenizer: Tokenizer) -> Spec:
        return Spec(
            tokens=vocabulary(tokenizer),
            network=NetworkFacts(
                attention=AttentionPattern("full"),
                prompt_encoder=self.prompt_encoder,
                length_head=self.length_head,
                timed=self.timed,
            ),
            family=FamilyFacts(
                schedule=find("noise.schedules", self.schedule)(), process=find("noise", self.process)()
            ),
        )

    def objective(self) -> Masked | Uniform:
        kind = Uniform if self.process == "uniform" else Masked
        return kind(steps=self.steps, length_weight=self.length_weight)

    def sampler(self) -> Ancestral | Posterior:
        return Posterior() if self.process == "uniform" else Ancestral()
