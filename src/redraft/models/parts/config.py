"""The base class of network configurations."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, Self

from redraft.registry import Registered


class NetworkConfig(Registered):
    """Shape of a network: the base class of the ``Config`` of every file in ``models/``, which is a frozen dataclass.

    The properties are defaults for networks without a feature; a dataclass field of the same name overrides them.
    """

    @property
    def shift(self) -> int:
        """The logits of position p are computed at position p - shift (autoregressive: 1)."""
        return 0

    @property
    def timed(self) -> bool:
        """The network reads the noise time."""
        return False

    @property
    def edits(self) -> bool:
        """The network predicts log-rates of edits instead of tokens (``parts.edits``)."""
        return False

    @property
    def self_conditioning(self) -> bool:
        """The network reads its own previous prediction (``parts.self_conditioning``)."""
        return False

    @property
    def vectors(self) -> tuple[int, int, bool] | None:
        """For continuous diffusion: width, tokens per vector, and whether the network predicts tokens; else None."""
        return None

    def smaller(self, layers: int, vocab_size: int) -> Self:
        """The same shape with other numbers of layers and token ids, to measure what each of them costs."""
        changes = {"layers": layers, "vocab_size": vocab_size}
        return replace(self, **{name: value for name, value in changes.items() if self.has_field(name)})  # type: ignore[type-var]

    @classmethod
    def has_field(cls, name: str) -> bool:
        """The network has an option ``name``."""
        return any(field.name == name for field in fields(cls))  # type: ignore[arg-type] # subclasses are dataclasses

    @classmethod
    def matching(cls, other: Any) -> Self | None:
        """A shape with about as many weights as a transformer of shape ``other``; None if no such rule is defined.

        Raises:
            UserError: a transformer that can't be matched.
        """
        return None
