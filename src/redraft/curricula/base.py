"""The base class of curricula."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from redraft.objectives.base import Objective
from redraft.registry import Registered
from redraft.types import Batch, Prepared, Spec


class Curriculum(Registered, ABC):
    """How attention changes during training. Subclasses are frozen dataclasses whose fields are their options."""

    @abstractmethod
    def prepare(
        self, objective: Objective[Any], batch: Batch, spec: Spec, progress: float, generator: torch.Generator
    ) -> Prepared:
        """Corrupt a batch as the objective does, with the attention of this point of training.

        Args:
            progress: share of the budget that is spent, 0 to 1.
        """
