"""Exact: the chain rule of an autoregressive model."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from redraft.objectives.autoregressive import Autoregressive
from redraft.objectives.masked import MaskedBatch
from redraft.posttraining.estimators.base import Estimator
from redraft.types import Batch, Spec


@dataclass(frozen=True)
class Exact(Estimator):
    """-log p(x) = sum_i -log p(x_i | x_<i), without noise, in one row."""

    of = Autoregressive
    exact = True

    def rows(self, tokens: int) -> int:
        """One."""
        return 1

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> MaskedBatch:
        prepared = Autoregressive().prepare(batch, spec, generator)
        return MaskedBatch(**vars(prepared), bound=prepared.weight)
