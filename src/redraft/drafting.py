"""A generation under way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redraft import canvas as canvases
from redraft.decode import Loop, Turns
from redraft.types import Canvas, Generation, Step

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.length import AnswerLength


@dataclass
class Drafting:
    """A generation under way: iterate over it for its steps, then take the results."""

    canvas: Canvas
    loop: Loop
    tokenizer: Tokenizer
    by_score: bool
    trace: list[Step] | None = None
    unmeasured: bool = False  # its length is still to be chosen
    looked_for: AnswerLength | None = None  # by looking; None: by the length head

    def begin(self) -> Drafting:
        """Choose the length, where the model does; everything else waits for the iteration."""
        if self.unmeasured:
            self.loop.choose_lengths(self.canvas, self.looked_for)
            self.unmeasured = False
        return self

    def turns(self) -> Turns[None]:
        """The whole generation, choice of length included, for a driver that runs the network itself."""
        if self.unmeasured:
            yield from self.loop.lengths(self.canvas, self.looked_for)
            self.unmeasured = False
        yield from self.loop.turns(self.canvas)

    def __iter__(self) -> Iterator[Step]:
        for step in self.loop.run(self.canvas):
            if self.trace is not None:
                self.trace.append(step)
            yield step

    def results(self) -> list[Generation]:
        """Texts as they stand, one per request."""
        found = []
        for row in canvases.winners(self.canvas, self.by_score):
            ids, finish = canvases.completion(self.canvas, row, self.loop.spec.eos_id)
            same = self.canvas.request == self.canvas.request[row]
            found.append(
                Generation(
                    text=self.tokenizer.decode(ids),
                    ids=ids,
                    nfe=int(self.canvas.nfe[same].max()),
                    score=float(self.canvas.score[row]),
                    finish=finish,
                    trace=self.trace or [],
                )
            )
        return found
