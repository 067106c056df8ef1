"""What is known of every position of a canvas during a generation: its token's probability, and when it was written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from redraft.types import FREE, GIVEN, PAD, Canvas, Step

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer

OPEN = "░░ "  # an open position
_BROKEN = "\ufffd"  # an incomplete character decodes to this
_LONGEST = 4  # tokens of one character


class Mark(NamedTuple):
    """One position."""

    token: int = -1  # -1: open, or given
    probability: float = math.nan  # of the token when it was written
    step: int = 0  # number of the step that wrote it, from 1
    writes: int = 0  # tokens written here so far; more than 1: the position was rewritten


class Piece(NamedTuple):
    """A part of a row's text. Tokens that form one character together are one piece."""

    text: str
    probability: float = math.nan  # the lowest of its tokens
    status: int = GIVEN
    step: int = 0  # the latest of its tokens
    writes: int = 0  # the most of its tokens


_BLANK = Mark()


class Marks:
    """The marks of a canvas [B][L], kept up to date step by step."""

    def __init__(self, rows: list[list[Mark]], steps: int = 0) -> None:
        self.rows, self.steps = rows, steps

    @classmethod
    def blank(cls, canvas: Canvas) -> Marks:
        """Those of a canvas on which nothing has been written."""
        rows, length = canvas.ids.shape
        return cls([[_BLANK] * length for _ in range(rows)])

    def copy(self) -> Marks:
        """The marks as they are now."""
        return Marks([list(row) for row in self.rows], self.steps)

    def note(self, step: Step) -> None:
        """Apply a step: rows that it copied from others are copied first, and positions that it moved are moved."""
        self.steps += 1
        if step.parents is not None:
            self.rows = [list(self.rows[parent]) for parent in step.parents.tolist()]
        if step.source is not None:
            moves = zip(self.rows, step.source.tolist(), strict=True)
            self.rows = [[old[place] if place >= 0 else _BLANK for place in source] for old, source in moves]
        changes = (part.tolist() for part in (step.row, step.pos, step.token, step.status, step.conf))
        for row, pos, token, status, conf in zip(*changes, strict=True):
            old = self.rows[row][pos]
            if status <= FREE:
                self.rows[row][pos] = Mark(writes=old.writes)
            elif token == old.token:
                self.rows[row][pos] = old._replace(probability=math.exp(conf))
            else:
                self.rows[row][pos] = Mark(token, math.exp(conf), self.steps, old.writes + 1)


def pieces(
    ids: Sequence[int], status: Sequence[int], marks: Sequence[Mark] | None, tokenizer: Tokenizer
) -> Iterator[Piece]:
    """The pieces of one row [L] of a canvas. Without marks, nothing is known of its tokens."""
    waiting: list[int] = []
    found: list[Mark] = []
    for index, (token, kind) in enumerate(zip(ids, status, strict=True)):
        if kind == PAD:
            continue
        if kind == FREE:
            yield Piece(OPEN, status=FREE)
            continue
        if token == tokenizer.sep_id:
            yield Piece("\n", status=kind)
            continue
        waiting.append(token)
        found.append(_BLANK if marks is None or kind == GIVEN else marks[index])
        text = tokenizer.decode(waiting)
        goes_on = index + 1 < len(ids) and status[index + 1] == kind
        if text.endswith(_BROKEN) and goes_on and len(waiting) < _LONGEST:
            continue
        probability = min(mark.probability for mark in found)
        yield Piece(text, probability, kind, max(m.step for m in found), max(m.writes for m in found))
        waiting, found = [], []
