"""Regex: the whole text matches a regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redraft.constraints._bytes import Automaton
from redraft.constraints._kind import Kind
from redraft.constraints._regex import from_regex
from redraft.errors import UserError


@dataclass(frozen=True)
class Regex(Kind):
    r"""``regex=\d{4}-\d{2}-\d{2}``, in Python's syntax. The text matches from beginning to end, so ``^`` and ``$`` at
    its ends say nothing more. No look-around, no word boundaries, no back-references."""

    pattern: str

    @classmethod
    def of(cls, value: Any) -> Regex:
        if not isinstance(value, str):
            raise UserError(f"regex: {value!r} is not a regular expression.")
        return cls(value)

    def automaton(self) -> Automaton:
        return from_regex(self.pattern)
