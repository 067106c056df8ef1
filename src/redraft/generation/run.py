"""A generation in progress."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redraft.canvas import best_rows, completion
from redraft.generation.length import LengthChoice, choose_lengths, length_steps
from redraft.generation.loop import Loop, Steps
from redraft.types import Canvas, Generation, Step

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer

_CONTEXT = 16  # tokens of the prompt that show whether a space follows it


@dataclass
class GenerationRun:
    """A generation in progress: iterate over it for its steps, then read ``results``."""

    canvas: Canvas
    loop: Loop
    tokenizer: Tokenizer
    by_score: bool
    trace: list[Step] | None = None
    needs_length: bool = False  # the output length has not been chosen yet
    length_choice: LengthChoice | None = None  # how the output length is chosen; None: the length head predicts it
    continues: bool = False  # the text goes on from the prompt, so that a space between them belongs to it

    def begin(self) -> GenerationRun:
        """Choose the output length, if the model chooses it. Iteration does everything else."""
        if self.needs_length:
            choose_lengths(self.loop, self.canvas, self.length_choice)
            self.needs_length = False
        return self

    def steps(self) -> Steps[None]:
        """The whole generation, including the choice of length, for a driver that runs the network itself."""
        if self.needs_length:
            yield from length_steps(self.loop, self.canvas, self.length_choice)
            self.needs_length = False
        yield from self.loop.steps(self.canvas)

    def __iter__(self) -> Iterator[Step]:
        for step in self.loop.run(self.canvas):
            if self.trace is not None:
                self.trace.append(step)
            yield step

    def satisfies(self, ids: Sequence[int]) -> bool:
        """Is there a constraint, and is a text of these tokens complete under it: may no token follow?"""
        constraint = self.loop.method.constraint
        return constraint is not None and constraint.complete(ids)

    def text(self, row: int, ids: list[int]) -> str:
        """The text of the new ids of a row. SentencePiece and WordPiece drop the first space of what they decode."""
        begin = int(self.canvas.prompt[row])
        before = self.canvas.ids[row, max(0, begin - _CONTEXT) : begin].tolist() if self.continues else []
        known, whole = self.tokenizer.decode(before), self.tokenizer.decode([*before, *ids])
        return whole[len(known) :] if whole.startswith(known) else self.tokenizer.decode(ids)

    def results(self) -> list[Generation]:
        """The current sequences, one per prompt."""
        found = []
        for row in best_rows(self.canvas, self.by_score):
            ids, finish = completion(self.canvas, row, self.loop.spec.tokens.eos_id)
            if self.satisfies(ids):
                finish = "stop"
            same = self.canvas.owner == self.canvas.owner[row]
            found.append(
                Generation(
                    text=self.text(row, ids),
                    ids=ids,
                    nfe=int(self.canvas.nfe[same].max()),
                    score=float(self.canvas.score[row]),
                    finish=finish,
                    trace=self.trace or [],
                )
            )
        return found
