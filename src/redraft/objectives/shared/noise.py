"""Shared by diffusion objectives: schedules rescaled to [0, 1], and the positions and ids that noise may affect."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from redraft.types import Batch, Schedule, Spec


@dataclass(frozen=True)
class RescaledSchedule:
    """A schedule whose alpha is rescaled to run from exactly 1 to exactly 0."""

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


def rescaled_schedule(spec: Spec) -> RescaledSchedule:
    """The schedule of a diffusion model, rescaled to run from 1 to 0.

    Raises:
        ValueError: the model has no noise schedule.
    """
    if spec.family.schedule is None:
        raise ValueError("A diffusion objective needs a model with a noise schedule.")
    return RescaledSchedule(spec.family.schedule)


def noisable(batch: Batch, spec: Spec) -> Tensor:
    """Target positions that noise may change [B, L]: all but a closing end-of-text that follows from the length."""
    if not spec.network.length_head or batch.prompt is None:
        return batch.target
    count = batch.target.cumsum(1)
    closing = (count == count[:, -1:]) & (batch.ids == spec.tokens.eos_id)
    return batch.target & ~closing


def forbidden_ids(spec: Spec, device: torch.device | str = "cpu", mask: bool = True) -> Tensor:
    """The ids [F] that are never predicted: the forbidden ones and, if the noise is a ``mask``, the mask; sorted."""
    ids = {*spec.tokens.forbidden, *([spec.tokens.mask_id] if mask else [])}
    return torch.tensor(sorted(ids), dtype=torch.int64, device=device)
