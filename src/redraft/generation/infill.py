"""Infilling: parse the holes of a text, choose their sizes, generate them, and assemble the text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from redraft.canvas import Growth
from redraft.errors import UserError
from redraft.generation.holes import Hole, HoleLayout, Parts, choose_sizes, go_on
from redraft.generation.method import build_constraint
from redraft.generation.start import start_holes
from redraft.types import GIVEN, PAD, SEALED, Canvas, Generation

if TYPE_CHECKING:
    from redraft.generation.run import GenerationRun
    from redraft.model import Model
    from redraft.settings import Settings

UNKNOWN = 12  # tokens that a hole of unknown length may have at most
_HOLE = re.compile(r"\[\[\s*(\?|\d+(?:\s*-\s*\d+)?)\s*\]\]")
_BRACKETS = re.compile(r"\[\[.*?\]\]")  # brackets that may be a misspelt hole


def parse(text: str) -> list[str | Hole]:
    """``"The [[3]] sat on [[1-4]]."`` -> alternating text and holes; ``[[?]]`` has 1 to 12 tokens.

    Raises:
        UserError: a hole without tokens, or with a range whose first number is larger than its second.
    """
    parts: list[str | Hole] = []
    for number, part in enumerate(_HOLE.split(text)):
        if number % 2 == 0:
            parts.append(part)
        elif part == "?":
            parts.append(Hole(1, UNKNOWN))
        else:
            least, _, most = part.partition("-")
            parts.append(Hole(int(least), int(most or least)))
    return parts


def with_hole(text: str, span: str | tuple[int, int], size: int) -> list[str | Hole]:
    """A text with a hole in place of ``span``, which is a part of the text or a range of its characters.

    The hole has half to twice the ``size`` tokens of the span.

    Raises:
        UserError: the text does not contain the span.
    """
    if isinstance(span, str):
        begin = text.find(span) if span else -1
        end = begin + len(span)
    else:
        begin, end = span
    if not 0 <= begin < end <= len(text):
        raise UserError(f"The text does not contain {span!r}.", "Copy the part to rewrite from the text.")
    return [text[:begin], Hole(max(1, math.ceil(size / 2)), max(1, 2 * size)), text[end:]]


def settings(model: Model, given: Mapping[str, Any]) -> Settings:
    """Settings for infilling, where the sizes of the holes determine the number of tokens.

    Raises:
        UserError: ``max_new_tokens`` is given, or as ``Model.settings``.
    """
    if "max_new_tokens" in given:
        raise UserError("Infilling has no option 'max_new_tokens'.", "The holes fix the number of tokens.")
    return model.settings(**given)


def fill(model: Model, parts: Parts, prompt: str, settings: Settings) -> Generation:
    """Choose the sizes of the holes, generate them, and return the complete text. Given text is unchanged.

    Raises:
        UserError: as ``InfillPlan.of``.
    """
    plan = InfillPlan.of(model, parts, prompt, settings)
    run = plan.start(settings)
    for _ in run:
        pass
    canvas = run.canvas
    text = plan.text_before(canvas, plan.generated(canvas), canvas.ids.shape[1])
    return replace(run.results()[0], text=text)


@dataclass(frozen=True)
class InfillPlan:
    """The canvas row of a text with holes, and the conversion of a canvas back to text.

    The sizes of the holes are chosen before generation; under a constraint, among the sizes for which it can be
    satisfied. A model that can insert and delete starts with initial sizes and changes them during generation, if there
    is no constraint. Then the sum of the holes' largest sizes limits all holes together, but no single hole.
    """

    layout: HoleLayout
    sizes: tuple[int, ...]
    passes: int = 0  # forward passes that the choice of the sizes took
    most: int = 0  # largest total size of growing holes; 0: sizes are fixed

    @classmethod
    def of(
        cls,
        model: Model,
        parts: Parts,
        prompt: str | Sequence[int],
        settings: Settings,
        checkpoint: Callable[[], None] = go_on,
    ) -> InfillPlan:
        """A plan for ``parts``. Of the settings it uses the constraint, and ``start``, the initial size of a hole.

        Args:
            checkpoint: called before every forward pass; it may raise an exception to end the search for sizes.
        Raises:
            UserError: there is no hole, the model can't attend to the text after a hole, the text is longer than the
                model's context, or the constraint allows no sizes.
        """
        if model.spec.network.attention.kind == "causal":
            raise UserError(
                "An autoregressive model can't attend to the text after a hole.", "Use a diffusion model to infill."
            )
        holes = [part for part in parts if isinstance(part, Hole)]
        if not holes:
            misspelt = _BRACKETS.search("".join(part for part in parts if isinstance(part, str)))
            raise UserError(
                f"The text has no hole{f', and {misspelt[0]} is not a hole' if misspelt else ''}.",
                "Write a hole of three tokens as [[3]], of unknown length as [[?]].",
            )
        layout = HoleLayout.of(model, parts, prompt)
        layout.check([hole.most for hole in holes])
        constraint = build_constraint(model, settings)
        if not model.spec.variable_length or constraint is not None or all(hole.least == hole.most for hole in holes):
            sizes, passes = choose_sizes(model, layout, holes, constraint, checkpoint)
            return cls(layout, tuple(sizes), passes)
        first = model.family.initial_length if settings.start is None else settings.start
        sizes = [min(max(first, hole.least if hole.least == hole.most else 0), hole.most) for hole in holes]
        return cls(layout, tuple(sizes), most=sum(hole.most for hole in holes))

    @cached_property
    def row(self) -> list[int | None]:
        return self.layout.row(self.sizes)

    @property
    def free(self) -> int:
        """Largest number of tokens to generate."""
        return self.most or sum(self.sizes)

    def start(self, settings: Settings) -> GenerationRun:
        """A generation that has not run yet, apart from the choice of sizes."""
        growth = None
        if self.most:
            begins = [begin for begin, _ in self.layout.spans(self.sizes)]
            limit = len(self.row) - sum(self.sizes) + self.most
            growth = Growth([limit], [[begin for begin in begins if begin < len(self.row)]])
        model, head = self.layout.model, len(self.layout.head)
        run = start_holes(model, [self.row], [head], settings, self.free, growth)
        run.canvas.nfe += self.passes
        return run

    def spans(self, canvas: Canvas) -> list[tuple[int, int]]:
        """The current holes: first position of each, and one past its last."""
        if not self.most:
            return self.layout.spans(self.sizes)
        status, found = canvas.status[0], []
        given, before, begin = (status == GIVEN).cumsum(0), len(self.layout.head), 0
        for piece in self.layout.pieces[:-1]:
            before += len(piece)
            begin = max(begin, int((given >= before).nonzero()[0]) + 1 if before else 0)
            inside = ((given == before) & (status != GIVEN) & (status != PAD)).nonzero()[:, 0]
            end = max(begin, int(inside[-1]) + 1 if len(inside) else begin)
            found.append((begin, end))
            begin = end
        return found

    def generated(self, canvas: Canvas) -> dict[int, int]:
        """Generated tokens in the holes, by position. End-of-text is skipped, and ends a hole without suffix."""
        ids, status, eos = canvas.ids[0].tolist(), canvas.status[0].tolist(), self.layout.model.tokenizer.eos_id
        found: dict[int, int] = {}
        for number, (begin, end) in enumerate(self.spans(canvas)):
            last = number == len(self.sizes) - 1 and not self.layout.texts[-1]
            for position in range(begin, end):
                if last and ids[position] == eos:
                    break
                if status[position] == SEALED and ids[position] != eos:
                    found[position] = ids[position]
        return found

    def text_before(self, canvas: Canvas, generated: Mapping[int, int], until: int) -> str:
        """The text before position ``until``, which must not be inside given text.

        Args:
            generated: tokens in the holes, by position.
        """
        spans = self.spans(canvas)
        result = ""
        for text, new, (begin, end) in zip(
            self.layout.texts, self.fillings(canvas, generated, until), spans, strict=False
        ):
            if until < begin:
                return result
            result += text + new
            if until < end:
                return result
        return result + (self.layout.texts[-1] if until >= spans[-1][1] + len(self.layout.pieces[-1]) else "")

    def fillings(self, canvas: Canvas, generated: Mapping[int, int], until: int) -> list[str]:
        """The text of each hole before position ``until``, without the space of ``HoleLayout.spaces``."""
        found = []
        for (begin, end), space in zip(self.spans(canvas), self.layout.spaces, strict=True):
            new = self.layout.model.tokenizer.decode(
                [generated[i] for i in range(begin, min(end, until)) if i in generated]
            )
            found.append(new.removeprefix(" ") if space else new)
        return found
