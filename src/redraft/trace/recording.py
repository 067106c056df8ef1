"""A generation as it can be replayed: every step of the text that was kept."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redraft.canvas import best_rows
from redraft.trace.marks import Marks, Piece, pieces
from redraft.trace.order import WritingOrder
from redraft.types import FREE, Generation, Step

if TYPE_CHECKING:
    from redraft.generation.run import GenerationRun


@dataclass
class Timed:
    """Iterates over steps and measures the time spent in the iterable, without the time spent on display."""

    steps: Iterable[Step]
    seconds: float = 0.0

    def __iter__(self) -> Iterator[Step]:
        source = iter(self.steps)
        while True:
            begin = time.perf_counter()
            step = next(source, None)
            self.seconds += time.perf_counter() - begin
            if step is None:
                return
            yield step


@dataclass(frozen=True)
class Frame:
    """A text after one step."""

    seconds: float  # since the generation began
    passes: int  # forward passes so far
    tokens: int  # written so far
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Recording:
    """A generation that can be replayed. The first frame is the empty canvas."""

    title: str
    facts: dict[str, str]
    prompt: str
    left_to_right: bool  # open positions are merely room that may stay unused
    frames: tuple[Frame, ...]
    result: Generation
    order: WritingOrder | None  # None: nothing was generated


def record(run: GenerationRun, title: str, prompt: str, facts: dict[str, str]) -> Recording:
    """Run the generation of one prompt and keep every step of the row whose text is the result.

    Of several rows (beams, candidates of a length), the history of the chosen one is followed backwards, through the
    rows that it was copied from.
    """
    canvas, marks, timed = run.canvas, Marks.blank(run.canvas), Timed(run)
    pictures = [_Picture.of(run, marks, 0.0)]
    parents: list[list[int] | None] = []
    for step in timed:
        marks.note(step)
        pictures.append(_Picture.of(run, marks, timed.seconds))
        parents.append(None if step.parents is None else step.parents.tolist())
    row = best_rows(canvas, run.by_score)[0]
    result = run.results()[0]
    begin = int(canvas.prompt[row])
    written = [mark.step for mark in marks.rows[row][begin : begin + len(result.ids)] if mark.step]
    frames = []
    for picture, parent in zip(reversed(pictures), [*reversed(parents), None], strict=True):
        frames.append(picture.frame(run, row))
        row = row if parent is None else parent[row]
    order = WritingOrder.of(written) if written else None
    causal = run.loop.spec.network.attention.kind == "causal"
    return Recording(title, facts, prompt, causal, tuple(reversed(frames)), result, order)


@dataclass(frozen=True)
class _Picture:
    """All rows of a canvas after a step."""

    ids: list[list[int]]
    status: list[list[int]]
    marks: Marks
    passes: list[int]
    seconds: float

    @classmethod
    def of(cls, run: GenerationRun, marks: Marks, seconds: float) -> _Picture:
        canvas = run.canvas
        return cls(canvas.ids.tolist(), canvas.status.tolist(), marks.copy(), canvas.nfe.tolist(), seconds)

    def frame(self, run: GenerationRun, row: int) -> Frame:
        """The text of one row, without its prompt."""
        begin = int(run.canvas.prompt[row])
        status = self.status[row][begin:]
        parts = pieces(self.ids[row][begin:], status, self.marks.rows[row][begin:], run.tokenizer)
        return Frame(self.seconds, self.passes[row], sum(s > FREE for s in status), tuple(parts))
