"""D3PM: diffusion in T discrete steps, with masks or with uniform noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families._vocabulary import vocabulary
from redraft.objectives.masked import Masked
from redraft.objectives.uniform import Uniform
from redraft.registry import find
from redraft.samplers.ancestral import Ancestral
from redraft.samplers.posterior import Posterior
from redraft.types import Attend, Spec


@dataclass(frozen=True)
class D3pm:
    """Austin et al. 2021 (arXiv:2107.03006): the variational bound of a chain of ``steps`` steps, in the paper's
    x_0-parameterisation, without its auxiliary loss, and never predicting a mask (as MDLM, arXiv:2406.07524).

    The bound loosens as steps get fewer. ``masked`` and ``uniform`` are its limit; the same network can be scored by
    either, so compare trained models by one of them.
    """

    citation = "arXiv:2107.03006"
    summary = "a chain of T discrete steps; absorbing or uniform noise"

    process: Literal["absorbing", "uniform"] = "absorbing"
    steps: int = 1000
    schedule: str = "cosine"  # a bound varies less between draws than with linear, whose lightest noise weighs 1/t
    timed: bool = False
    isolate_prompt: bool = True
    length_head: bool = True
    length_weight: float = 0.1

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"family d3pm: steps {self.steps} must be at least 1.", "Take masked for continuous time.")

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
        )

    def objective(self) -> Masked | Uniform:
        kind = Uniform if self.process == "uniform" else Masked
        return kind(steps=self.steps, length_weight=self.length_weight)

    def sampler(self) -> Ancestral | Posterior:
        return Posterior() if self.process == "uniform" else Ancestral()
