"""Length: a number of tokens, words or characters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.constraints.automata.regex import from_regex
from redraft.constraints.shared.kind import Kind
from redraft.errors import UserError

_FORM = re.compile(r"(\d*)(-?)(\d*)\s*(tokens|words|characters)?")


@dataclass(frozen=True)
class Length(Kind):
    """``length=20``: exactly 20 tokens; ``length=5-20``; ``length=-20``: at most 20; ``length=5-``: at least 5.

    Other units are ``3-8 words`` (separated by single spaces or line breaks) and ``100-140 characters``. End-of-text
    is not counted.
    """

    low: int
    high: int  # -1: no bound
    unit: str = "tokens"

    @classmethod
    def of(cls, value: Any) -> Length:
        """Create the constraint from its text.

        Raises:
            UserError: the text has another form, or an upper bound below the lower one.
        """
        found = _FORM.fullmatch(str(value).strip())
        if not found or not (found[1] or found[3]):
            raise UserError(
                f"length: {value!r} is not a length.", "Write 20, 5-20, 5-, -20, 3-8 words or -140 characters."
            )
        low = int(found[1] or 0)
        high = int(found[3]) if found[3] else -1 if found[2] else low
        if 0 <= high < low:
            raise UserError(f"length: {value!r} has its upper bound below its lower bound.", "Exchange them.")
        return cls(low, high, found[4] or "tokens")

    @property
    def least(self) -> int:
        """Minimum number of tokens."""
        return self.low if self.unit == "tokens" else 0

    @property
    def most(self) -> int:
        """Maximum number of tokens; -1: no bound."""
        return self.high if self.unit == "tokens" else -1

    def automaton(self) -> ByteAutomaton | None:
        """The language of texts of so many words or characters; None if the unit is tokens.

        Raises:
            UserError: the bounds are too large.
        """
        if self.unit == "tokens":
            return None
        if self.unit == "characters":
            return from_regex(f"(?s:.){_times(self.low, self.high)}")
        more = f"\\S+(?:[ \\n]\\S+){_times(max(self.low - 1, 0), self.high - 1 if self.high > 0 else self.high)}"
        if self.high == 0:
            return from_regex("")
        return from_regex(f"(?:{more})?" if self.low == 0 else more)


def _times(low: int, high: int) -> str:
    return f"{{{low},{high if high >= 0 else ''}}}"
