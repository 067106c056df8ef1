"""The base classes of guidance: its options, and what runs in the decoding loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from redraft.limits import check_options
from redraft.registry import Registered
from redraft.types import Canvas, Request, Spec


class GuidanceOptions(Registered, ABC):
    """A guidance method with its options.

    Subclasses are frozen dataclasses whose fields are their options, declared with ``redraft.options.setting``.

    Raises:
        UserError: an option is out of its range.
    """

    def __post_init__(self) -> None:
        check_options(self)

    @abstractmethod
    def with_tokenizer(self, tokenizer: Any) -> Guidance:
        """The guidance that the loop uses with this tokenizer: itself, or an object that was trained with it."""


class Guidance(ABC):
    """Replaces one request by several, and combines their logits."""

    def expand(self, canvas: Canvas, request: Request, spec: Spec) -> list[Request]:
        """The requests to run."""
        return [request]

    @abstractmethod
    def combine(self, canvas: Canvas, request: Request, logits: list[Tensor]) -> Tensor:
        """Guided logits [N, V] from those of each request, [N, V] each."""
