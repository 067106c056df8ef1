"""The base class of all kinds of constraint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from redraft.constraints.automata.byte_automaton import ByteAutomaton


@dataclass(frozen=True)
class Kind:
    """A set of texts. Instances are hashable, because compiled automata are cached by them.

    Fields:
        least, most: minimum and maximum number of tokens, end-of-text not counted; most -1: no bound.
    """

    @classmethod
    def of(cls, value: Any) -> Self:
        """Create a constraint from the value of a setting, usually a text.

        Raises:
            UserError: the value is not valid for this kind.
        """
        raise NotImplementedError

    def automaton(self) -> ByteAutomaton | None:
        """The language; None: every text.

        Raises:
            UserError: the constraint can't be compiled.
        """
        raise NotImplementedError

    @property
    def least(self) -> int:
        """Minimum number of tokens."""
        return 0

    @property
    def most(self) -> int:
        """Maximum number of tokens; -1: no bound."""
        return -1
