"""The error for user mistakes: what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake that the user can fix. The command line prints it as one line and exits with code 2.

    Any other exception is a bug in redraft and keeps its traceback.

    Args:
        what: what is wrong and where (file, line, tensor, option), as a sentence.
        remedy: what to do about it, as a second sentence; empty if there is nothing to add.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what, self.remedy = what, remedy
        super().__init__(f"{what} {remedy}".strip())

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        """Between processes, what is wrong and what to do stay apart."""
        return type(self), (self.what, self.remedy)


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"Did you mean 'x'? Known: x, y, z."``; without a similar name the question is left out."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Known: {', '.join(known)}."
