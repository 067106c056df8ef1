"""Template: fixed text with holes, each of which matches a regular expression."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.constraints.automata.regex import from_regex
from redraft.constraints.shared.kind import Kind
from redraft.errors import UserError

_HOLE = re.compile(r"\[\[(.*?)\]\](?!\])", re.DOTALL)


@dataclass(frozen=True)
class Template(Kind):
    r"""``template=Dear [[ ]], you are [[\d+]] years old.`` A hole holds a regular expression.

    An empty hole matches any text of at least one character without line breaks. Holes may have any length; for holes
    of a given number of tokens use ``redraft infill``.
    """

    text: str

    @classmethod
    def of(cls, value: Any) -> Template:
        """Create the constraint from its text.

        Raises:
            UserError: the value is not a text, or a hole holds only a number.
        """
        if not isinstance(value, str) or not value:
            raise UserError(f"template: {value!r} is not a text, or is empty.", "Write text with holes [[...]].")
        for hole in _HOLE.findall(value):
            if hole.strip().isdigit():
                raise UserError(
                    f"template: The hole [[{hole}]] is a regular expression that matches only {hole.strip()!r}.",
                    f"Write [[.{{{hole.strip()}}}]] for {hole.strip()} characters; redraft infill has holes of tokens.",
                )
        return cls(value)

    def automaton(self) -> ByteAutomaton:
        """The language of the filled template.

        Raises:
            UserError: the regular expression of a hole can't be compiled.
        """
        parts = _HOLE.split(self.text)
        return from_regex("".join(_hole(part) if at % 2 else re.escape(part) for at, part in enumerate(parts)))


def _hole(pattern: str) -> str:
    return f"(?:{pattern})" if pattern.strip() else "(?:.+)"
