"""Regex: the whole text matches a regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.constraints.automata.regex import from_regex
from redraft.constraints.shared.kind import Kind
from redraft.errors import UserError


@dataclass(frozen=True)
class Regex(Kind):
    r"""``regex=\d{4}-\d{2}-\d{2}``, in Python's syntax.

    The pattern matches the text from beginning to end, so ``^`` and ``$`` at its ends change nothing. Look-around, word
    boundaries and back-references are not supported.
    """

    pattern: str

    @classmethod
    def of(cls, value: Any) -> Regex:
        """Create the constraint from its pattern.

        Raises:
            UserError: the value is not a text.
        """
        if not isinstance(value, str):
            raise UserError(f"regex: {value!r} is not a text.", "Write a regular expression in quotes.")
        return cls(value)

    def automaton(self) -> ByteAutomaton:
        """The language of the pattern.

        Raises:
            UserError: the pattern can't be compiled.
        """
        return from_regex(self.pattern)
