"""Glancing: masked diffusion that learns from what it can't guess yet, for texts in very few steps."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from redraft.families.masked import Masked
from redraft.objectives.glancing import Glancing as Objective


@dataclass(frozen=True)
class Glancing(Masked):
    """GLAT (Qian et al. 2021, arXiv:2008.07905) on a share of the rows, masked diffusion on the others."""

    citation = "arXiv:2008.07905"
    summary = "masked diffusion that shows in training what it can't guess yet; for very few steps"

    ratio: float = 0.5  # tokens shown for each one that is guessed wrong
    share: float = 0.5  # of the rows that are treated so

    def objective(self) -> Objective:
        return Objective(**asdict(super().objective()), ratio=self.ratio, share=self.share)
