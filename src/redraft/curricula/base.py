"""The base class of curricula."""

from __future__ import annotations

from abc import ABC
from typing import Any, TypeVar

import torch

from redraft.objectives.base import Objective
from redraft.registry import Registered
from redraft.types import Batch, Prepared, Spec

P = TypeVar("P", bound=Prepared)


class Curriculum(Registered, ABC):
    """How attention changes during training. Subclasses are frozen dataclasses whose fields are their options.

    A subclass implements ``spec`` or ``adapt``.
    """

    def spec(self, spec: Spec, length: int, progress: float) -> Spec:
        """The facts that the objective uses at this point of training, for rows of ``length`` positions.

        Args:
            progress: share of the budget that is spent, 0 to 1.
        """
        return spec

    def adapt(self, prepared: P, progress: float, generator: torch.Generator) -> P:
        """A corrupted batch with the attention of this point of training."""
        return prepared

    def prepare(
        self, objective: Objective[Any], batch: Batch, spec: Spec, progress: float, generator: torch.Generator
    ) -> Prepared:
        """Corrupt a batch [B, L] as the objective does, with the attention of this point of training."""
        own = self.spec(spec, batch.ids.shape[1], progress)
        prepared: Prepared = objective.prepare(batch, own, generator)
        return self.adapt(prepared, progress, generator)
