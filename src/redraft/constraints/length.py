"""Length: so many tokens, words or characters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redraft.constraints._bytes import Automaton
from redraft.constraints._kind import Kind
from redraft.constraints._regex import from_regex
from redraft.errors import UserError

_SHAPE = re.compile(r"(\d*)(-?)(\d*)\s*(tokens|words|characters)?")


@dataclass(frozen=True)
class Length(Kind):
    """``length=20`` tokens exactly, ``length=5-20``, ``length=-20`` at most, ``length=5-`` at least; or ``3-8 words``
    (divided by single spaces or line breaks), or ``100-140 characters``. End-of-text is not counted."""

    low: int
    high: int  # -1: no bound
    unit: str = "tokens"

    @classmethod
    def of(cls, value: Any) -> Length:
        found = _SHAPE.fullmatch(str(value).strip())
        if not found or not (found[1] or found[3]):
            raise UserError(f"length: {value!r} is no length.", "Write 20, 5-20, 5-, -20, 3-8 words, -140 characters.")
        low = int(found[1] or 0)
        high = int(found[3]) if found[3] else -1 if found[2] else low
        if 0 <= high < low:
            raise UserError(f"length: {value!r} ends below its beginning.")
        return cls(low, high, found[4] or "tokens")

    @property
    def least(self) -> int:
        return self.low if self.unit == "tokens" else 0

    @property
    def most(self) -> int:
        return self.high if self.unit == "tokens" else -1

    def automaton(self) -> Automaton | None:
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
