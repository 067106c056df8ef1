"""Template: fixed text with holes, each filled with what its regular expression allows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redraft.constraints._bytes import Automaton
from redraft.constraints._kind import Kind
from redraft.constraints._regex import from_regex
from redraft.errors import UserError

_HOLE = re.compile(r"\[\[(.*?)\]\](?!\])", re.DOTALL)


@dataclass(frozen=True)
class Template(Kind):
    r"""``template=Dear [[ ]], you are [[\d+]] years old.`` A hole holds a regular expression; an empty one takes any
    text of at least one character on the line. Holes may have any length (holes of so many tokens: ``redraft infill``).
    """

    text: str

    @classmethod
    def of(cls, value: Any) -> Template:
        if not isinstance(value, str) or not value:
            raise UserError(f"template: {value!r} is no text.")
        for hole in _HOLE.findall(value):
            if hole.strip().isdigit():
                raise UserError(
                    f"template: a hole holds a regular expression, and [[{hole}]] matches just {hole.strip()!r}.",
                    f"Write [[.{{{hole.strip()}}}]] for so many characters; redraft infill has holes of tokens.",
                )
        return cls(value)

    def automaton(self) -> Automaton:
        parts = _HOLE.split(self.text)
        return from_regex("".join(_hole(part) if at % 2 else re.escape(part) for at, part in enumerate(parts)))


def _hole(pattern: str) -> str:
    return f"(?:{pattern})" if pattern.strip() else "(?:.+)"
