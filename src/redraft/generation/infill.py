"""Infilling: parse the holes of a text, choose their sizes, generate them, and assemble the text."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from redraft.canvas import Growth, make_canvas
from redraft.errors import UserError
from redraft.generation.length import Row, best_lengths, first_pass
from redraft.generation.method import build_constraint
from redraft.generation.prompts import answer_suffix, check_length, prompt_ids
from redraft.generation.start import start_holes
from redraft.samplers.shared.common import length_request
from redraft.types import GIVEN, PAD, SEALED, Canvas, Generation

if TYPE_CHECKING:
    from redraft.generation.loop import Constraint
    from redraft.generation.run import GenerationRun
    from redraft.model import Model
    from redraft.settings import Settings

UNKNOWN = 12  # tokens that a hole of unknown length may have at most
_HOLE = re.compile(r"\[\[\s*(\?|\d+(?:\s*-\s*\d+)?)\s*\]\]")
_BRACKETS = re.compile(r"\[\[.*?\]\]")  # brackets that may be a misspelt hole
_NEIGHBOURS = 2  # given tokens on each side of a hole whose log-probability is part of the score of its size
_MOST_CHECKED = 4096  # largest number of combinations of sizes that a constraint checks
_MOST_SCORED = 64  # largest number of combinations that are all scored; with more, one hole is varied at a time


@dataclass(frozen=True)
class Hole:
    """A gap of ``least`` to ``most`` missing tokens."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if self.least < 1:
            raise UserError("A hole needs at least one token.", "Write a hole of three tokens as [[3]].")
        if self.most < self.least:
            raise UserError(
                f"A hole can't have {self.least} to {self.most} tokens.", "Write the smaller number first: [[1-8]]."
            )


Parts = Sequence[str | Hole]


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
    def of(cls, model: Model, parts: Parts, prompt: str | Sequence[int], settings: Settings) -> InfillPlan:
        """A plan for ``parts``. Of the settings it uses the constraint, and ``start``, the initial size of a hole.

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
            sizes, passes = choose_sizes(model, layout, holes, constraint)
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


@dataclass(frozen=True)
class HoleLayout:
    """The token ids of a text with holes.

    Many tokenizers encode a space together with the word after it. Then a space before a hole is removed from the given
    tokens, and the first token of the hole contains it; ``InfillPlan.fillings`` strips it from the hole's text. The
    same applies to a space at the end of a plain-text prompt that the text continues.
    """

    model: Model
    head: list[int]  # ids of the prompt
    texts: list[str]  # text before, between and after the holes
    pieces: list[list[int]]  # ids of ``texts``, without the removed spaces
    spaces: list[bool]  # of each hole: its first token contains the space before it
    tail: list[int]  # ids that end the answer

    @classmethod
    def of(cls, model: Model, parts: Parts, prompt: str | Sequence[int]) -> HoleLayout:
        texts = [""]
        for part in parts:
            if isinstance(part, Hole):
                texts.append("")
            else:
                texts[-1] += part
        joins = len(model.tokenizer.encode(" a")) == len(model.tokenizer.encode("a"))
        spaces = [joins and text.endswith(" ") for text in texts[:-1]]
        short = [text[:-1] if space else text for text, space in zip(texts, [*spaces, False], strict=True)]
        if isinstance(prompt, str) and not model.paired and not texts[0] and joins and prompt.endswith(" "):
            prompt, spaces[0] = prompt[:-1], True
        tail = answer_suffix(model)
        return cls(model, prompt_ids(model, prompt), texts, model.tokenizer.encode_batch(short), spaces, tail)

    def row(self, sizes: Sequence[int]) -> list[int | None]:
        """The ids of a row whose holes have these sizes, None in the holes."""
        row: list[int | None] = list(self.head)
        for piece, size in zip(self.pieces, [*sizes, 0], strict=True):
            row += [*piece, *[None] * size]
        return [*row, *self.tail]

    def spans(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """First position of each hole, and one past its last."""
        found, end = [], len(self.head)
        for piece, size in zip(self.pieces[:-1], sizes, strict=True):
            begin = end + len(piece)
            end = begin + size
            found.append((begin, end))
        return found

    def check(self, sizes: Sequence[int]) -> None:
        """Raises UserError if a row with holes of these sizes is longer than the context."""
        check_length(self.model, sum(sizes))
        check_length(self.model, len(self.row(sizes)))


def choose_sizes(
    model: Model, layout: HoleLayout, holes: Sequence[Hole], constraint: Constraint | None = None
) -> tuple[list[int], int]:
    """The sizes of the holes with the highest score, among those that the constraint allows, and the passes it took.

    Two rows with empty holes are run for each combination of sizes. Its score is the sum of

    - minus the mean entropy of the predictions in the holes, in nats: a hole of the right size is easy to fill (CAL,
      Liu et al. 2026, arXiv:2602.00476, uses the mean confidence);
    - log p of the two given tokens on each side of a hole, masked too: they fit the text only at the right distance;
    - log p of the row's length, if the model has a length head.
    """
    ranges = [range(hole.least, hole.most + 1) for hole in holes]
    if math.prod(len(sizes) for sizes in ranges) == 1:
        return [sizes[0] for sizes in ranges], 0
    free = [index for index, sizes in enumerate(ranges) if len(sizes) > 1]
    allowed = None if constraint is None else _allowed(model, layout, ranges, constraint)
    by_length = _length_scores(model, layout, [hole.most for hole in holes])
    passes = 0 if by_length is None else 1
    count = math.prod(len(sizes) for sizes in ranges) if allowed is None else len(allowed)
    if count <= _MOST_SCORED:
        combinations = [list(each) for each in (itertools.product(*ranges) if allowed is None else allowed)]
        return _best(model, layout, combinations, free, by_length), passes + 2
    sizes = [(hole.least + hole.most) // 2 for hole in holes]
    if allowed is not None:  # start from the nearest allowed sizes
        sizes = list(min(allowed, key=lambda each: sum(abs(a - b) for a, b in zip(each, sizes, strict=True))))
    for index in [*free, *(free if len(free) > 1 else [])]:  # two rounds, because the sizes depend on each other
        combinations = [[*sizes[:index], size, *sizes[index + 1 :]] for size in ranges[index]]
        combinations = [each for each in combinations if allowed is None or tuple(each) in allowed]
        sizes = _best(model, layout, combinations, free, by_length)
        passes += 2
    return sizes, passes


def _allowed(
    model: Model, layout: HoleLayout, ranges: Sequence[range], constraint: Constraint
) -> dict[tuple[int, ...], None]:
    """Combinations of sizes for which the constraint can be satisfied, in order.

    Raises:
        UserError: there is none, or there are too many combinations to check.
    """
    if math.prod(len(sizes) for sizes in ranges) > _MOST_CHECKED:
        raise UserError(
            f"Holes under a constraint can have at most {_MOST_CHECKED} combinations of sizes.",
            "Fix some sizes, such as [[3]].",
        )
    combinations, found = list(itertools.product(*ranges)), dict[tuple[int, ...], None]()
    for begin in range(0, len(combinations), _MOST_SCORED):
        part = combinations[begin : begin + _MOST_SCORED]
        rows, heads = [layout.row(sizes) for sizes in part], [len(layout.head)] * len(part)
        possible = constraint.possible(make_canvas(rows, heads, model.spec, seeds=[0] * len(part)))
        found |= {sizes: None for sizes, is_possible in zip(part, possible.tolist(), strict=True) if is_possible}
    if not found:
        raise UserError(
            "The constraint can't be satisfied with any allowed sizes of the holes.",
            "Change the sizes, the text around the holes or the constraint.",
        )
    return found


def _best(
    model: Model, layout: HoleLayout, combinations: list[list[int]], free: list[int], by_length: list[float] | None
) -> list[int]:
    network, spec = model.inference_network(), model.spec
    if spec.tokens.expand_id >= 0:  # a mask stands for one token here
        spec = spec.with_tokens(forbidden=(*spec.tokens.forbidden, spec.tokens.expand_id, spec.tokens.delete_id))
    rows = [layout.row(sizes) for sizes in combinations]
    masked: list[Row] = []
    for sizes, row in zip(combinations, rows, strict=True):
        spans = [span for index, span in enumerate(layout.spans(sizes)) if index in free]
        near = {i for begin, end in spans for i in [*range(begin - _NEIGHBOURS, begin), *range(end, end + _NEIGHBOURS)]}
        near &= set(range(len(layout.head), len(row) - len(layout.tail)))
        masked.append([None if i in near else token for i, token in enumerate(row)])
    heads = [len(layout.head)] * len(rows)
    neighbours = first_pass(network, masked, heads, spec, rows)
    holes = first_pass(network, rows, heads, spec)
    scores = [sides.truth - hole.entropy for sides, hole in zip(neighbours, holes, strict=True)]
    if by_length is not None:
        scores = [score + by_length[len(row)] for score, row in zip(scores, rows, strict=True)]
    return combinations[max(range(len(rows)), key=scores.__getitem__)]


def _length_scores(model: Model, layout: HoleLayout, most: Sequence[int]) -> list[float] | None:
    """log p of a row's length by the length head, indexed by that length; None without a length head."""
    if not model.spec.network.length_head:
        return None
    prompt = torch.tensor([len(layout.head)])
    longest = len(layout.row(most))
    with torch.inference_mode():
        logits = model.inference_network()(
            length_request(torch.tensor([layout.head]), prompt, model.spec, torch.zeros(1, dtype=torch.int64))
        )
        log_p, lengths = best_lengths(logits, longest, longest)
    found = [-math.inf] * (longest + 1)
    for value, length in zip(log_p[0].tolist(), lengths[0].tolist(), strict=True):
        if length + len(layout.head) <= longest:
            found[length + len(layout.head)] = value
    return found
