"""Interfaces that have no base class: networks, noise schedules and noise processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor

from redraft.types.canvas import Canvas, Step
from redraft.types.request import Forward, Request

if TYPE_CHECKING:
    from redraft.types.spec import Spec


class Network(Protocol):
    """Maps a request to flat logits [N, V], in the order of ``targets >= 0``; those of a ``CleanStream`` come last.

    A network for continuous diffusion also answers requests with a ``VectorQuery`` (the logits of a length are in the
    first columns). If it predicts tokens, it has ``expected(log_p [N, V]) -> [N, Z]``, their mean vector.
    """

    def __call__(self, request: Forward, store: Any | None = None) -> Tensor: ...


class Schedule(Protocol):
    """alpha(t), the probability that a token is unchanged at time t: alpha(0) = 1 is clean, alpha(1) = 0 is noise."""

    @property
    def epsilon(self) -> float:
        """Largest distance of alpha from 1 at t = 0, and from 0 at t = 1."""
        ...

    def alpha(self, t: Tensor) -> Tensor: ...
    def dalpha(self, t: Tensor) -> Tensor: ...


class NoiseProcess(Protocol):
    """The methods of a noise process that generation needs; ``noise.base`` has the others."""

    name: ClassVar[str]

    @property
    def masks(self) -> bool:
        """Noise replaces tokens by the mask token."""
        ...

    def sample(self, seed: Tensor, noise_step: Tensor, positions: Tensor, spec: Spec) -> Tensor:
        """Tokens of pure noise, keyed like all sampling: [R], [R], [R, W] -> [R, W]."""
        ...


class Constraint(Protocol):
    """Keeps a canvas within a language: before sampling, and again when several tokens are written in one step."""

    def start(self, canvas: Canvas) -> None:
        """Prepare for a canvas. Raises UserError if a row can't be completed."""
        ...

    def possible(self, canvas: Canvas) -> Tensor:
        """[B] bool: which rows can be completed."""
        ...

    def lengths(self, most: int) -> Tensor:
        """[most] bool: which lengths 1, 2, ..., ``most`` are feasible, end-of-text included."""
        ...

    def mask(self, canvas: Canvas, request: Request, logits: Tensor) -> Tensor:
        """Logits [N, V] with -inf where a token would make the constraint unsatisfiable."""
        ...

    def complete(self, ids: Sequence[int]) -> bool:
        """Do these tokens of a text satisfy the constraint, so that no token may follow?"""
        ...

    def admit(self, canvas: Canvas, step: Step) -> Step:
        """The step without the changes that are not jointly feasible."""
        ...
