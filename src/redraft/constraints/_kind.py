"""What every kind of constraint is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from redraft.constraints._bytes import Automaton


@dataclass(frozen=True)
class Kind:
    """A set of texts. Kinds are hashable: what is compiled for one is kept.

    Fields:
        least, most: tokens of the text, end-of-text not counted; most -1: no bound.
    """

    @classmethod
    def of(cls, value: Any) -> Self:
        """Read a constraint, from text above all.

        Raises:
            UserError: the value can't be used.
        """
        raise NotImplementedError

    def automaton(self) -> Automaton | None:
        """The language; None where any text will do."""
        raise NotImplementedError

    @property
    def least(self) -> int:
        return 0

    @property
    def most(self) -> int:
        return -1
