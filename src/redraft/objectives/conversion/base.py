"""The base classes of conversion: options, objectives that wrap a family's own, and forward passes of the teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from redraft.errors import UserError
from redraft.models.parts.backbone import Backbone
from redraft.objectives.base import Objective, OwnTexts, Rollout, RolloutPass
from redraft.objectives.block import Block
from redraft.objectives.hybrid import Hybrid
from redraft.objectives.masked import Masked
from redraft.objectives.wrappers.self_conditioned import SelfConditioned
from redraft.options import check, setting
from redraft.registry import Registered
from redraft.runtime import upload
from redraft.types import AttentionPattern, Batch, DraftQuery, Forward, LossTerms, Prepared, Spec, StateQuery


@dataclass(frozen=True)
class Origin:
    """The autoregressive model that training starts from. Its frozen network is named ``teacher``."""

    spec: Spec
    layers: int  # blocks of its network
    answers_states: bool  # ``Backbone.answers_states``

    @classmethod
    def of(cls, spec: Spec, network: Backbone) -> Origin:
        """The facts about a model; its weights are not read."""
        return cls(spec, len(network.blocks), network.answers_states)


@dataclass(frozen=True, kw_only=True)
class ConversionMethod(Registered, ABC):
    """A way in which a converted model learns from the autoregressive one. Its fields are its options."""

    also: Mapping[str, Any] = setting({}, "A further objective of conversion, as a table with its name.")

    rank: ClassVar[int]  # of two, the one of higher rank wraps the other

    def __post_init__(self) -> None:
        check(self)

    @property
    def own_texts(self) -> OwnTexts | None:
        """The texts to train on, if the autoregressive model writes them first."""
        return None

    @property
    def brings(self) -> tuple[ConversionMethod, ...]:
        """Others that it needs, with the options that they have unless the recipe names them."""
        return ()

    @abstractmethod
    def wrap(self, inner: Objective[Any], origin: Origin) -> Objective[Any]:
        """The objective of training, around ``inner``.

        Raises:
            UserError: it can't wrap this objective, or needs something that the network lacks.
        """

    def check_inner(self, inner: Objective[Any], kinds: tuple[type[Objective[Any]], ...] = ()) -> None:
        """Check that an objective has one weight for each token that it predicts.

        Args:
            kinds: the objectives that can be wrapped; by default those of the families masked, block and hybrid.
        Raises:
            UserError: it is another one.
        """
        core: Objective[Any] = inner
        while isinstance(core, Converted | SelfConditioned):
            core = core.inner
        kinds = kinds or (Masked, Block, Hybrid)
        if type(core) not in kinds:
            known = ", ".join(kind.name for kind in kinds)
            raise UserError(
                f"[objective] {self.name} can't be combined with the training objective '{core.name}'.",
                f"Use it with a family that trains with one of: {known}.",
            )


@dataclass
class ConvertedBatch(Prepared):
    """A batch of the inner objective, with what its wrapper adds."""

    inner: Prepared

    def part(self, begin: int, end: int) -> Self:
        """As ``Prepared.part``."""
        return replace(super().part(begin, end), inner=self.inner.part(begin, end))

    @property
    def reported(self) -> Mapping[str, float]:
        return self.inner.reported


@dataclass(frozen=True)
class Converted(Objective[Prepared]):
    """An objective that wraps another one, and asks the teacher first."""

    inner: Objective[Any]
    origin: Origin

    needs_rollout = True
    needs_teacher = True

    @property
    def additive(self) -> bool:  # type: ignore[override] # of this instance
        """As the inner objective."""
        return self.inner.additive

    @property
    def curricular(self) -> bool:
        """As the inner objective: the teacher keeps its own attention."""
        return self.inner.curricular

    def units(self, batch: Batch) -> int:
        """As the inner objective, for a batch [B, L]."""
        return self.inner.units(batch)

    def scoring(self) -> Objective[Any]:
        """The inner objective's: the teacher is for training only."""
        return self.inner.scoring()

    def candidates(self) -> Sequence[Objective[Any]]:
        return self.inner.candidates()

    def variant(self, chosen: Mapping[str, Any]) -> Objective[Any]:
        return replace(self, inner=self.inner.variant(chosen))

    def prepare(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Prepared:
        """The batch [B, L] of the inner objective, without the teacher."""
        prepared: Prepared = self.inner.prepare(batch, spec, generator)
        return prepared

    def rollout(self, batch: Batch, spec: Spec, generator: torch.Generator) -> Rollout[Prepared]:
        """That of the inner objective, for a batch [B, L]."""
        prepared: Prepared = yield from self.inner.rollout(batch, spec, generator)
        return prepared

    def loss(self, logits: Tensor, prepared: Prepared) -> LossTerms:
        """That of the inner objective. The logits [N, V] are overwritten."""
        return self.inner.loss(logits, prepared)


def shared_fields(prepared: Prepared) -> dict[str, Any]:
    """The fields that every prepared batch has, for a batch that wraps it."""
    return {each.name: getattr(prepared, each.name) for each in fields(Prepared)}


def positions(request: Forward) -> Tensor:
    """The positions [N] of the targets, in the order of the logits."""
    return torch.cat([targets[targets >= 0] for targets in request.target_lists])


def ask_teacher(
    batch: Batch,
    prepared: Prepared,
    origin: Origin,
    spec: Spec,
    reduce: Callable[[Tensor], Tensor] | None = None,
    states: StateQuery | None = None,
) -> Generator[RolloutPass, Tensor, tuple[Tensor, Tensor]]:
    """One causal pass of the teacher over the clean text, with its predictions at the targets of ``prepared``.

    Args:
        batch: [B, L], from which ``prepared`` was made.
        reduce: what is needed of its logits (``RolloutPass``). states: asks for hidden states.
    Returns:
        Its answers [N, ...], 0 where it has none; and [N] bool, the targets that it has one for: tokens of the text,
        but not its length, nor the padding of a last block.
    """
    row, at, length = prepared.row, positions(prepared.request), batch.ids.shape[1]
    inside = at.clamp(max=length - 1)
    known = (at < length) & batch.target[row, inside]
    wanted = torch.zeros_like(batch.target)
    wanted[row[known], at[known]] = True
    column = torch.arange(length).expand_as(batch.ids)
    extra = () if spec.network.shift == origin.spec.network.shift else (DraftQuery(origin.spec.network.shift),)
    request = Forward(
        tokens=batch.ids,
        positions=torch.where(batch.valid, column, -1),
        targets=torch.where(wanted, column, -1),
        attention=AttentionPattern("causal"),
        prompt=batch.prompt if origin.spec.network.prompt_encoder else None,
        network="teacher",
        extra=extra if states is None else (*extra, states),
    )
    answer = yield RolloutPass(request, reduce=reduce)
    number = (wanted.flatten().cumsum(0) - 1).view_as(wanted)[row, inside]
    found = answer.new_zeros(len(row), *answer.shape[1:])
    where = answer.device
    return found.index_copy_(0, upload(known.nonzero()[:, 0], where), answer[upload(number[known], where)]), known
