"""The base class of families."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from redraft.data.tokenizer import Tokenizer
from redraft.models.parts.backbone import Backbone
from redraft.objectives.base import Objective, OwnTexts, TrainingPhase
from redraft.registry import Registered
from redraft.samplers.base import Sampler
from redraft.types import Spec


@dataclass(frozen=True)
class Conversion:
    """How a study trains an autoregressive checkpoint into a family (``compare.bases``)."""

    refused: str = ""  # why no autoregressive checkpoint can become one of this family; empty: it can
    curricula: tuple[str, ...] = ()  # curricula that can change its attention gradually


class Family(Registered, ABC):
    """A named combination of noise process, schedule, objective and sampler.

    Subclasses are frozen dataclasses whose fields are the ``[family]`` table of a recipe.
    """

    citation: ClassVar[str]  # arXiv ids
    summary: ClassVar[str]  # one line for ``redraft models``
    needs_target: ClassVar[bool] = False  # it exists only beside a model that it drafts for
    specials: ClassVar[tuple[str, ...]] = ()  # additional special tokens that the tokenizer needs

    @property
    def spare(self) -> int:
        """Number of positions that training needs beyond the length of a sequence."""
        return 0

    @property
    def initial_length(self) -> int:
        """Initial number of positions of a variable-length sequence."""
        return 0

    @property
    def prompt_encoder(self) -> bool:
        """The prompt never attends to the answer (see ``types.AttentionPattern``)."""
        return False

    @property
    def conversion(self) -> Conversion:
        """How an autoregressive checkpoint becomes one of this family."""
        return Conversion()

    @property
    def own_texts(self) -> OwnTexts | None:
        """The texts to train on, if the starting checkpoint writes them (family ``drafter``)."""
        return None

    @abstractmethod
    def spec(self, tokenizer: Tokenizer) -> Spec:
        """The facts about the model that samplers and objectives use."""

    @abstractmethod
    def objective(self) -> Objective:
        """The objective for scoring, whose nats are the likelihood or a bound on it."""

    def training(self) -> Objective:
        """The objective for training."""
        return self.objective()

    def validation(self) -> Objective:
        """The objective whose nats are reported during training."""
        return self.objective()

    def phases(self) -> Sequence[TrainingPhase]:
        """The parts of a training run, in order."""
        return (TrainingPhase(1.0, self.training(), ("",)),)

    @abstractmethod
    def sampler(self) -> Sampler:
        """The default sampler."""

    def network_config(self, base: Any) -> Any:
        """The configuration of the network, from that of a transformer of the requested size."""
        return base

    def network_for(self, network: Backbone) -> Backbone:
        """The network that continues a checkpoint's as one of this family; by default, the same one.

        Raises:
            UserError: it can't be continued.
        """
        return network
