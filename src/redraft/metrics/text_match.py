"""Text match: the text equals the reference, for programs, where every character counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean


@dataclass(frozen=True)
class TextMatch(Mean):
    """Per cent of rows whose text equals a reference. Only spaces at the ends of lines, and empty lines at both ends,
    are ignored."""

    name = "text_match"
    label = "text match %"
    decides = True

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        ours = _trimmed(hypothesis)
        return float(any(ours == _trimmed(reference) for reference in references))


def _trimmed(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    while lines and not lines[0]:
        lines.pop(0)
    return lines
