"""The base class of objectives, forward passes that precede a training step, and the phases of a training run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from redraft.registry import Registered
from redraft.types import Batch, Forward, LossTerms, Prepared, Spec


@dataclass
class RolloutPass:
    """A forward pass that an objective needs before the one whose loss is minimised.

    It runs as in generation, without gradient or dropout, unless ``with_gradient``. The network of the request is
    ``main`` (the network in training) or ``teacher`` (a frozen copy of the checkpoint that training started from).
    """

    request: Forward
    with_gradient: bool = False
    reduce: Callable[[Tensor], Tensor] | None = None  # [n, V] -> [n, ...], row by row: what is needed of the logits
    expected: bool = False  # ``reduce`` gives log-probabilities, and the answer is their mean vectors (``Network``)


@dataclass
class ScorePass:
    """Asks for the nats [B] of every row of a prepared batch, in float64 on the host, without gradient or dropout.

    They are those of ``Objective.loss``. Passes over the same prepared batch have the same noise in every network.
    """

    prepared: Prepared
    network: str = "main"  # or ``teacher``


@dataclass
class SamplePass:
    """Asks for texts that the network in training generates, and for their rewards (``train.post_training``)."""

    batch: Batch  # whose prompts are answered; its targets are not read
    copies: int  # texts for each prompt
    seed: int


@dataclass
class Samples:
    """The answer to a ``SamplePass``: R = B * copies texts; those of one prompt follow each other."""

    batch: Batch  # prompts and generated texts, with the end-of-text token unless truncated, [R, L]
    reward: Tensor  # [R] float64
    truncated: Tensor  # [R] bool: the text reached its longest length before an end-of-text token
    order: Tensor | None = None  # [R, L] number of the step that wrote each position last; -1: none did


@dataclass(frozen=True)
class OwnTexts:
    """Training on what the starting checkpoint writes itself, in place of the texts of the data."""

    count: int  # most texts
    temperature: float


P = TypeVar("P", bound=Prepared)
# Yields what must be computed first, returns the batch. A ``RolloutPass`` receives the logits [N, V] or what ``reduce``
# makes of them, a ``ScorePass`` nats [B], a ``SamplePass`` ``Samples``.
Rollout = Generator[RolloutPass | ScorePass | SamplePass, Any, P]


class Objective(Registered, ABC, Generic[P]):
    """Computes the loss of a batch from one request to the network. P is the type of its prepared batches.

    Subclasses are frozen dataclasses whose fields are their options.
    """

    needs_rollout: bool = False  # ``rollout`` runs additional forward passes
    needs_teacher: bool = False  # some of them run on the frozen copy of the starting checkpoint
    additive: bool = False  # loss and nats of a batch are the sums of those of its parts (``Prepared.part``)

    @property
    def curricular(self) -> bool:
        """The attention of its requests may follow a curriculum. Those of a rollout do not."""
        return not self.needs_rollout

    @abstractmethod
    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> P:
        """Corrupt a batch [B, L] and build the request that the loss needs, on the device of the batch."""

    @abstractmethod
    def loss(self, logits: Tensor, prepared: P) -> LossTerms:
        """The loss to minimise and the nats of each row. The logits [N, V] are overwritten."""

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[P]:
        """As ``prepare``, for objectives that need predictions of the network first.

        It takes the place of ``prepare`` wherever a batch is trained on or scored (``rollouts.prepare_batch``).
        """
        return self.prepare(batch, spec, generator)
        yield  # makes this function a generator, which runs no forward pass

    def units(self, batch: Batch) -> int:
        """What the loss of a batch [B, L] is a mean over: target tokens, unless an objective counts something else."""
        return int(batch.target.sum())

    def scoring(self) -> Objective[Any]:
        """The objective whose nats are the likelihood or a bound on it, without auxiliary terms or restricted noise."""
        return self

    def candidates(self) -> Sequence[Objective[Any]]:
        """Objectives of which training selects the one whose loss varies least on the validation rows; () is none."""
        return ()

    def variant(self, chosen: Mapping[str, Any]) -> Objective[Any]:
        """This objective with the fields of one of its ``candidates``."""
        return replace(self, **chosen)  # type: ignore[type-var] # subclasses are dataclasses


@dataclass(frozen=True)
class TrainingPhase:
    """One of the parts of a training run (``Family.phases``)."""

    share: float  # share of the training budget; the shares of all phases sum to 1
    objective: Objective[Any]
    trains: tuple[str, ...]  # name prefixes of the parameters that are trained; all others are frozen
