"""The base classes of samplers and of sampler wrappers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from redraft.limits import MAX_POSITIONS, check_options
from redraft.options import setting
from redraft.registry import Registered
from redraft.types import Canvas, Output, Request, Spec, Step

Draws = Literal["inverse_cdf", "gumbel"]
State = Any  # state of a sampler between steps: None, a tensor [B, ...] or a dataclass of these


def block_option() -> int:
    """The option ``block`` of a sampler."""
    words = "Size of the blocks that are generated one after the other; 0: the whole sequence is one block."
    return setting(0, words, least=0, most=MAX_POSITIONS, unit="positions")


def draws_option(default: Draws) -> Draws:
    """The option ``draws`` of a sampler that predicts left to right."""
    words = (
        "How tokens are sampled: by inverse CDF from one random number a position, or from a Gumbel number a token "
        "(the same distribution). With gumbel the verifier accepts as many drafts in any order of the vocabulary."
    )
    found: Draws = setting(default, words)
    return found


class Sampler(Registered, ABC):
    """A rule that changes the canvas. It reads the canvas and never calls a network.

    Each iteration of the loop calls ``plan``, runs the requests, samples tokens from the answers, and calls ``apply``.
    Subclasses are frozen dataclasses whose fields are their options, declared with ``redraft.options.setting``.

    Raises:
        UserError: an option is out of its range.
    """

    tries: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # values of its options that ``tune`` tries

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def block_size(self) -> int:
        """Size of its blocks (its field ``block``); 0: it works on the whole sequence."""
        return int(vars(self).get("block", 0))

    @property
    def initial_length(self) -> int:
        """Free positions that an answer begins with, if the sampler changes its length; 0: it does not."""
        return 0

    @property
    def exact(self) -> bool:
        """It samples exactly from the model's joint distribution at temperature 1."""
        return False

    @property
    def retracts(self) -> bool:
        """It may change tokens that it has written."""
        return False

    @property
    def width(self) -> int:
        """Canvas rows per prompt (beams)."""
        return 1

    @property
    def order_by(self) -> Literal["noise", "distribution", "samples"]:
        """Whether it chooses positions by random numbers, predicted distributions or sampled tokens.

        ``likelihood.sampler_likelihood`` depends on it.
        """
        return "samples"

    @abstractmethod
    def start(self, canvas: Canvas, spec: Spec) -> State:
        """The state before the first step.

        Raises:
            UserError: an option is out of range, or the sampler does not support the model.
        """

    @abstractmethod
    def plan(self, canvas: Canvas, state: State, spec: Spec) -> list[Request]:
        """The forward passes of this step. An empty list ends the generation."""

    @abstractmethod
    def apply(
        self, canvas: Canvas, state: State, spec: Spec, requests: list[Request], outputs: list[Output]
    ) -> tuple[State, Step]:
        """The next state, and the changes of the canvas. A constraint may drop some of them."""


@dataclass(frozen=True)
class SamplerWrapper(Sampler):
    """A sampler that adapts another one to a model."""

    inner: Sampler

    @property
    def initial_length(self) -> int:
        return self.inner.initial_length

    @property
    def exact(self) -> bool:
        return self.inner.exact

    @property
    def retracts(self) -> bool:
        return self.inner.retracts

    @property
    def width(self) -> int:
        return self.inner.width

    @property
    def order_by(self) -> Literal["noise", "distribution", "samples"]:
        return self.inner.order_by


def unwrapped(sampler: Sampler) -> Sampler:
    """The sampler inside all wrappers."""
    while isinstance(sampler, SamplerWrapper):
        sampler = sampler.inner
    return sampler
