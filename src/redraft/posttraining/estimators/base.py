"""The base class of estimators of a text's log-likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from redraft.objectives.base import Objective
from redraft.objectives.masked import MaskedBatch
from redraft.registry import Registered
from redraft.types import Batch, Spec


class Estimator(Registered, ABC):
    """Estimates -log p(text | prompt) of every row of a batch from one forward pass over a prepared batch.

    Subclasses are frozen dataclasses whose fields are their options.
    """

    of: ClassVar[type[Objective[Any]]]  # the objective of the families that it is for
    exact: ClassVar[bool] = False  # it is the log-likelihood, not a random estimate of a bound

    def misfit(self, inner: Objective[Any], spec: Spec) -> str:
        """Why it can't be used with a model whose family has the objective ``inner``; empty if it can."""
        return "" if isinstance(inner, self.of) else f"it is for models trained with the objective '{self.of.name}'"

    @abstractmethod
    def rows(self, tokens: int) -> int:
        """Most rows of the prepared batch for a text of so many tokens."""

    @abstractmethod
    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        """Draw the noise of a batch [B, L] and request the tokens that it hides.

        Returns:
            A batch with ``rows`` = B whose nats, the sums of ``bound`` times the cross-entropies of each row, estimate
            -log p.
        """
