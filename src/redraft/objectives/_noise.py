"""What all diffusion objectives share: a schedule without loose ends, and what noise may touch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.types import Batch, Schedule, Spec


@dataclass(frozen=True)
class Stretched:
    """A schedule whose alpha is moved to run from exactly 1 to exactly 0."""

    schedule: Schedule

    def alpha(self, t: Tensor) -> Tensor:
        first, last = self._ends(t)
        return (self.schedule.alpha(t) - last) / (first - last)

    def dalpha(self, t: Tensor) -> Tensor:
        first, last = self._ends(t)
        return self.schedule.dalpha(t) / (first - last)

    def _ends(self, t: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.schedule.alpha(torch.tensor([0.0, 1.0], dtype=t.dtype, device=t.device))
        return first, last


def stretched(spec: Spec) -> Stretched:
    """The schedule of a diffusion model, from 1 to 0."""
    if spec.schedule is None:
        raise ValueError("diffusion needs a model with a noise schedule")
    return Stretched(spec.schedule)


def noisable(batch: Batch, spec: Spec) -> Tensor:
    """Target positions that noise may touch [B, L]: all but a closing end-of-text that the length gives away."""
    if not spec.length_head or batch.prompt is None:
        return batch.target
    seen = batch.target.cumsum(1)
    closing = (seen == seen[:, -1:]) & (batch.ids == spec.eos_id)
    return batch.target & ~closing
