"""The base classes of post-training: a method chosen by name, and its loss, a weighted sum of log-likelihoods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from redraft.data.examples import Example, RowFormat
from redraft.data.post_training import Comparisons, Prompts
from redraft.data.tokenizer import Tokenizer
from redraft.objectives.base import Objective
from redraft.objectives.masked import MaskedBatch
from redraft.objectives.shared.cross_entropy import cross_entropy, per_row
from redraft.options import check, setting
from redraft.posttraining.estimators.base import Estimator
from redraft.registry import Registered
from redraft.types import Batch, LossTerms, Spec


@dataclass(frozen=True, kw_only=True)
class PostTraining(Registered, ABC):
    """A way to train a model further that replaces its family's own objective: ``[objective]`` of a recipe.

    Subclasses are frozen dataclasses whose fields are their options.
    """

    estimator: str = setting("auto", "How likelihoods are estimated: a file of posttraining/estimators, or auto.")
    estimator_options: Mapping[str, Any] = setting({}, "Options of the estimator.")

    learning_rate: ClassVar[float]  # defaults of ``redraft finetune``
    passes: ClassVar[float]
    estimators: ClassVar[tuple[str, ...]]  # how likelihoods are estimated by default: the first that fits the model

    @abstractmethod
    def objective(self, estimator: Estimator) -> Weighted:
        """The objective of training."""

    @abstractmethod
    def rows(self) -> RowFormat:
        """How rows of the data are read."""

    @abstractmethod
    def tokenise(self, examples: Sequence[Example], tokenizer: Tokenizer) -> Comparisons | Prompts:
        """The training data."""

    def __post_init__(self) -> None:
        check(self)


@dataclass(kw_only=True)
class WeightedBatch(MaskedBatch):
    """A batch whose targets have the weights that the gradient of a method gives them."""

    value: Tensor  # [N] shares of the value of the loss
    stats: Mapping[str, float]

    @property
    def reported(self) -> Mapping[str, float]:
        """Means over the units of the batch."""
        return self.stats


@dataclass(frozen=True)
class Weighted(Objective[WeightedBatch]):
    """A loss whose gradient is a weighted sum of the gradients of rows' log-likelihoods.

    Every loss f(log p_1, log p_2, ...) of the estimated log-likelihoods of rows is of this kind:

        grad f = sum_r (df / dlog p_r) grad log p_r

    The factors come from passes without gradient over the same prepared batch (``ScorePass``), so with the same
    noise. The pass with gradient then has a loss that is a sum over target positions, whatever f is: with a large
    vocabulary, logits [N, V] never exist as a whole.
    """

    estimator: Estimator

    additive = True
    needs_rollout = True

    def units_of_row(self) -> int:
        """Texts of an update for each row of the data."""
        return 1

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> WeightedBatch:
        """The batch [B, L] with the weights of the likelihood: the loss is the nats per token."""
        prepared = self.estimator.prepare(batch, spec, generator)
        return WeightedBatch(
            **{**vars(prepared), "weight": prepared.bound}, value=torch.zeros_like(prepared.bound), stats={}
        )

    def loss(self, logits: Tensor, prepared: WeightedBatch) -> LossTerms:
        """The value of the loss, with the gradient of the weights; and the nats of each row. The logits [N, V] are
        overwritten."""
        nll, train = cross_entropy(logits, prepared.target, prepared.forbidden, 0.0, prepared.is_length)
        loss = (prepared.weight * (train - train.detach()) + prepared.value).sum()
        return LossTerms(
            loss=loss / max(prepared.tokens, 1),
            nats=per_row(nll * prepared.bound, prepared.row, prepared.rows),
            tokens=prepared.tokens,
            is_bound=not self.estimator.exact,
        )


def weighted(
    prepared: WeightedBatch, factors: Tensor, value: Tensor, units: int, stats: Mapping[str, Tensor]
) -> WeightedBatch:
    """A prepared batch whose loss has the gradient sum_r factors_r grad nats_r / units and the given value / units.

    Args:
        factors: [B] one for each row. value: [] a sum over the units. stats: means over the units, [] each.
    """
    count = max(len(prepared.bound), 1)
    return WeightedBatch(
        **{
            **vars(prepared),
            "weight": prepared.bound * factors.float()[prepared.row],
            "value": torch.full_like(prepared.bound, float(value) / count),
            "tokens": units,
            "stats": {name: float(number) for name, number in stats.items()},
        }
    )
