"""Glancing: masked diffusion trained with noise that depends on its errors, for very few sampling steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from redraft.families.masked import Masked
from redraft.objectives.glancing import Glancing as Objective


@dataclass(frozen=True)
class Glancing(Masked):
    """GLAT (Qian et al. 2021, arXiv:2008.07905) on a share of the rows, masked diffusion on the others."""

    citation = "arXiv:2008.07905"
    summary = "masked diffusion that reveals more tokens of difficult sequences in training; for very few steps"

    ratio: float = 0.5  # revealed tokens per wrongly predicted token
    share: float = 0.5  # share of the rows with this noise

    def objective(self) -> Objective:
        return Objective(**asdict(super().objective()), ratio=self.ratio, share=self.share)
