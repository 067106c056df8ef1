"""Blocks: block-causal attention whose blocks grow to the whole text, and shrink to the family's own in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from redraft.courses import check_share
from redraft.errors import UserError
from redraft.types import Attend, Batch, Objective, Prepared, Spec


@dataclass(frozen=True)
class Blocks:
    """Warm-up, stable, decay of the block size (LLaDA2.0, Bie et al. 2025, arXiv:2512.15745).

    Over the first ``grow`` of training blocks double from 1 (every position sees those before it) to the whole text;
    then all is one block, masked diffusion; over the last ``shrink`` they halve to the block of the family, if its
    attention has blocks. Every size gets the same share. With ``family block`` each size is trained as such, clean
    blocks beside noisy ones; with ``family masked`` earlier blocks are noisy too.
    """

    grow: float = 0.5  # share of training
    shrink: float = 0.2

    def __post_init__(self) -> None:
        check_share("blocks", "grow", self.grow)
        check_share("blocks", "shrink", self.shrink)
        if self.grow + self.shrink > 1:
            raise UserError("course blocks: grow and shrink are more than all of training.", "Lower one of them.")

    def prepare(
        self, objective: Objective, batch: Batch, spec: Spec, progress: float, generator: torch.Generator
    ) -> Prepared:
        attend = self.attend(spec.attend, batch.ids.shape[1], progress)
        return objective.prepare(batch, replace(spec, attend=attend), generator)

    def attend(self, own: Attend, length: int, progress: float) -> Attend:
        """Who sees whom at this point, in a text of ``length`` positions, for a family whose attention is ``own``."""
        doublings = max(1, math.ceil(math.log2(max(length, 2))))
        if progress < self.grow:
            return Attend("block", 2 ** int(progress / self.grow * doublings))
        if own.kind != "block":
            return own
        left = 1.0 - progress
        if left >= self.shrink:
            return Attend("full")
        halvings = max(1, doublings - int(math.log2(own.block)))
        return Attend("block", max(own.block, 2 ** (doublings - 1 - int((1 - left / self.shrink) * halvings))))
