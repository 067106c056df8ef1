"""Filling holes: reading them, choosing how long they are, writing them, and putting the text together again."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from redraft.canvas import Growth, make_canvas
from redraft.errors import UserError
from redraft.length import Row, best_lengths, first_look, length_request
from redraft.types import GIVEN, PAD, SEALED, Canvas, Generation

if TYPE_CHECKING:
    from redraft.decode import Constraint
    from redraft.drafting import Drafting
    from redraft.model import Model
    from redraft.settings import Settings

UNKNOWN = 12  # tokens that a hole of unknown length may have at most
_HOLE = re.compile(r"\[\[\s*(\?|\d+(?:\s*-\s*\d+)?)\s*\]\]")
_BRACKETS = re.compile(r"\[\[.*?\]\]")  # what may have been meant for one
_NEAR = 2  # given tokens on each side of a hole that must go with its length
_LOOKED_AT = 4096  # combinations of lengths of which a constraint is asked
_TOGETHER = 64  # combinations of lengths that are all tried; where there are more, one hole is varied at a time


@dataclass(frozen=True)
class Hole:
    """From ``least`` to ``most`` tokens that are missing."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if self.least < 1:
            raise UserError("a hole of no tokens can't be filled.", "Write a hole of three tokens as [[3]].")
        if self.most < self.least:
            raise UserError(
                f"a hole of {self.least} to {self.most} tokens.", "Write the smaller number first: [[1-8]]."
            )


Parts = Sequence[str | Hole]


def parse(text: str) -> list[str | Hole]:
    """``"The [[3]] sat on [[1-4]]."`` -> text and holes in turn; ``[[?]]`` has 1 to 12 tokens.

    Raises:
        UserError: a hole of no tokens.
    """
    parts: list[str | Hole] = []
    for number, part in enumerate(_HOLE.split(text)):
        if number % 2 == 0:
            parts.append(part)
        elif part == "?":
            parts.append(Hole(1, UNKNOWN))
        else:
            low, _, high = part.partition("-")
            parts.append(Hole(int(low), int(high or low)))
    return parts


def without(text: str, span: str | tuple[int, int], size: int) -> list[str | Hole]:
    """A text with a hole in place of ``span``: a part of it, or the characters from a to b. The new wording may have
    half to twice the ``size`` tokens of the old one.

    Raises:
        UserError: the text has no such part.
    """
    if isinstance(span, str):
        begin = text.find(span) if span else -1
        end = begin + len(span)
    else:
        begin, end = span
    if not 0 <= begin < end <= len(text):
        raise UserError(f"the text has no part {span!r} to rewrite.", "Give a part of it as it stands there.")
    return [text[:begin], Hole(max(1, math.ceil(size / 2)), max(1, 2 * size)), text[end:]]


def fill(model: Model, parts: Parts, prompt: str, settings: Settings) -> Generation:
    """Choose the lengths of the holes, write them, and return the whole text. What stands is left as it is.

    Raises:
        UserError: as ``Plan.of``.
    """
    plan = Plan.of(model, parts, prompt, settings)
    drafting = plan.draft(settings)
    for _ in drafting:
        pass
    canvas = drafting.canvas
    text = plan.read(canvas, plan.written(canvas), canvas.ids.shape[1])
    return replace(drafting.results()[0], text=text)


@dataclass(frozen=True)
class Plan:
    """A text with holes on its way: how it is set up, and read again, by whoever has it written.

    The sizes of the holes are chosen before anything is written, under a constraint among those that leave a way to
    satisfy it. But a model that can insert and delete begins, without a constraint, with some and finds them out while
    it writes. Then holes together have at most as many tokens as they say; what each has at least or at most is not
    held to.
    """

    layout: Layout
    sizes: tuple[int, ...]
    passes: int = 0  # that it took to choose them
    most: int = 0  # tokens that growing holes may have together; 0: sizes stay as they are

    @classmethod
    def of(cls, model: Model, parts: Parts, prompt: str | Sequence[int], settings: Settings) -> Plan:
        """
        Args:
            settings: of these the constraint, and with how many tokens a growing hole begins (``start``).
        Raises:
            UserError: no hole, a model that can't see what follows one, more than its context holds, or holes of no
                size that a constraint allows.
        """
        if model.spec.attend.kind == "causal":
            raise UserError(
                "an autoregressive model can't see what follows a hole.", "Use a diffusion model to infill."
            )
        holes = [part for part in parts if isinstance(part, Hole)]
        if not holes:
            none = _BRACKETS.search("".join(part for part in parts if isinstance(part, str)))
            raise UserError(
                f"the text has no hole{f': {none[0]} is none' if none else ''}.",
                "Write a hole of three tokens as [[3]], of unknown length as [[?]].",
            )
        layout = Layout.of(model, parts, prompt)
        layout.check([hole.most for hole in holes])
        constraint = model.constraint(settings)
        if not model.spec.grows or constraint is not None or all(hole.least == hole.most for hole in holes):
            sizes, passes = choose_sizes(model, layout, holes, constraint)
            return cls(layout, tuple(sizes), passes)
        first = model.family.start if settings.start is None else settings.start
        sizes = [min(max(first, hole.least if hole.least == hole.most else 0), hole.most) for hole in holes]
        return cls(layout, tuple(sizes), most=sum(hole.most for hole in holes))

    @cached_property
    def row(self) -> list[int | None]:
        return self.layout.row(self.sizes)

    @property
    def free(self) -> int:
        """Tokens to write, at most."""
        return self.most or sum(self.sizes)

    def draft(self, settings: Settings) -> Drafting:
        """A generation of which nothing has run yet but the choice of sizes."""
        growth = None
        if self.most:
            begins = [begin for begin, _ in self.layout.spans(self.sizes)]
            limit = len(self.row) - sum(self.sizes) + self.most
            growth = Growth([limit], [[begin for begin in begins if begin < len(self.row)]])
        model, head = self.layout.model, len(self.layout.head)
        drafting = model.fill_rows([self.row], [head], settings, self.free, growth)
        drafting.canvas.nfe += self.passes
        return drafting

    def spans(self, canvas: Canvas) -> list[tuple[int, int]]:
        """Where the holes are now: first position of each, and one past its last."""
        if not self.most:
            return self.layout.spans(self.sizes)
        status, found = canvas.status[0], []
        given, before, at = (status == GIVEN).cumsum(0), len(self.layout.head), 0
        for piece in self.layout.pieces[:-1]:
            before += len(piece)
            at = max(at, int((given >= before).nonzero()[0]) + 1 if before else 0)
            inside = ((given == before) & (status != GIVEN) & (status != PAD)).nonzero()[:, 0]
            end = int(inside[-1]) + 1 if len(inside) else at
            found.append((at, max(at, end)))
            at = max(at, end)
        return found

    def written(self, canvas: Canvas) -> dict[int, int]:
        """Tokens in the holes by position, without what is no text: end-of-texts, and in a last hole all after one."""
        ids, status, eos = canvas.ids[0].tolist(), canvas.status[0].tolist(), self.layout.model.tokenizer.eos_id
        found: dict[int, int] = {}
        for number, (begin, end) in enumerate(self.spans(canvas)):
            last = number == len(self.sizes) - 1 and not self.layout.texts[-1]
            for place in range(begin, end):
                if last and ids[place] == eos:
                    break
                if status[place] == SEALED and ids[place] != eos:
                    found[place] = ids[place]
        return found

    def read(self, canvas: Canvas, written: Mapping[int, int], until: int) -> str:
        """The text before position ``until``, at which no given text may be cut.

        Args:
            written: tokens in holes by position.
        """
        spans = self.spans(canvas)
        whole = ""
        for text, new, (begin, end) in zip(
            self.layout.texts, self.fillings(canvas, written, until), spans, strict=False
        ):
            if until < begin:
                return whole
            whole += text + new
            if until < end:
                return whole
        return whole + (self.layout.texts[-1] if until >= spans[-1][1] + len(self.layout.pieces[-1]) else "")

    def fillings(self, canvas: Canvas, written: Mapping[int, int], until: int) -> list[str]:
        """The text of each hole before position ``until``, without the space that stands before it."""
        found = []
        for (begin, end), space in zip(self.spans(canvas), self.layout.bring, strict=True):
            new = self.layout.model.tokenizer.decode(
                [written[i] for i in range(begin, min(end, until)) if i in written]
            )
            found.append(new.removeprefix(" ") if space else new)
        return found


@dataclass(frozen=True)
class Layout:
    """A text with holes in tokens.

    Many tokenizers glue a space to the word behind it. A space before a hole is then better left to the hole, whose
    first token will bring it; ``Plan.read`` puts it back where it does not. That holds at the end of a prompt of plain
    text, too, which the text goes on from.
    """

    model: Model
    head: list[int]  # the prompt
    texts: list[str]  # before, between and after the holes
    pieces: list[list[int]]  # the same as tokens, without a space that a hole is to bring
    bring: list[bool]  # by hole: is it to bring a space?
    tail: list[int]  # what ends the answer

    @classmethod
    def of(cls, model: Model, parts: Parts, prompt: str | Sequence[int]) -> Layout:
        texts = [""]
        for part in parts:
            if isinstance(part, Hole):
                texts.append("")
            else:
                texts[-1] += part
        glues = len(model.tokenizer.encode(" a")) == len(model.tokenizer.encode("a"))
        bring = [glues and text.endswith(" ") for text in texts[:-1]]
        short = [text[:-1] if space else text for text, space in zip(texts, [*bring, False], strict=True)]
        if isinstance(prompt, str) and not model.conditional and not texts[0] and glues and prompt.endswith(" "):
            prompt, bring[0] = prompt[:-1], True
        tail = model.closing
        return cls(model, model.prompt_ids(prompt), texts, model.tokenizer.encode_batch(short), bring, tail)

    def row(self, sizes: Sequence[int]) -> list[int | None]:
        row: list[int | None] = list(self.head)
        for piece, size in zip(self.pieces, [*sizes, 0], strict=True):
            row += [*piece, *[None] * size]
        return [*row, *self.tail]

    def spans(self, sizes: Sequence[int]) -> list[tuple[int, int]]:
        """First position of each hole, and one past its last."""
        found, at = [], len(self.head)
        for piece, size in zip(self.pieces[:-1], sizes, strict=True):
            found.append((at + len(piece), at + len(piece) + size))
            at += len(piece) + size
        return found

    def check(self, sizes: Sequence[int]) -> None:
        """Raises UserError where holes of these sizes do not fit the context."""
        self.model.check_length(sum(sizes))
        self.model.check_length(len(self.row(sizes)))


def choose_sizes(
    model: Model, layout: Layout, holes: Sequence[Hole], constraint: Constraint | None = None
) -> tuple[list[int], int]:
    """The likeliest sizes of holes whose size is open, of those that a constraint allows, and the passes that it took.

    Of each combination two rows are looked at, with nothing written in the holes, and the sum is taken of

    - minus the mean entropy of the hole's predictions, in nats: a hole of the right length is easy to fill (CAL, Liu et
      al. 2026, arXiv:2602.00476, takes the mean confidence);
    - log p of the two given tokens on each side of it, masked with it: they fit the rest only at the right distance;
    - log p of the whole length, where the model has a length head.
    """
    ranges = [range(hole.least, hole.most + 1) for hole in holes]
    if math.prod(len(sizes) for sizes in ranges) == 1:
        return [sizes[0] for sizes in ranges], 0
    free = [index for index, sizes in enumerate(ranges) if len(sizes) > 1]
    allowed = None if constraint is None else _allowed(model, layout, ranges, constraint)
    by_length = _length_scores(model, layout, [hole.most for hole in holes])
    passes = 0 if by_length is None else 1
    every = math.prod(len(sizes) for sizes in ranges) if allowed is None else len(allowed)
    if every <= _TOGETHER:
        combinations = [list(each) for each in (itertools.product(*ranges) if allowed is None else allowed)]
        return _best(model, layout, combinations, free, by_length), passes + 2
    sizes = [(hole.least + hole.most) // 2 for hole in holes]
    if allowed is not None:  # the nearest
        sizes = list(min(allowed, key=lambda each: sum(abs(a - b) for a, b in zip(each, sizes, strict=True))))
    for index in [*free, *(free if len(free) > 1 else [])]:  # twice, since they depend on each other
        combinations = [[*sizes[:index], size, *sizes[index + 1 :]] for size in ranges[index]]
        combinations = [each for each in combinations if allowed is None or tuple(each) in allowed]
        sizes = _best(model, layout, combinations, free, by_length)
        passes += 2
    return sizes, passes


def _allowed(
    model: Model, layout: Layout, ranges: Sequence[range], constraint: Constraint
) -> dict[tuple[int, ...], None]:
    """Combinations of sizes that leave a way to satisfy the constraint, in order.

    Raises:
        UserError: there is none, or too many to look at.
    """
    if math.prod(len(sizes) for sizes in ranges) > _LOOKED_AT:
        raise UserError(
            f"holes under a constraint may have {_LOOKED_AT} combinations of sizes at most.", "Name some sizes: [[3]]."
        )
    every, found = list(itertools.product(*ranges)), dict[tuple[int, ...], None]()
    for begin in range(0, len(every), _TOGETHER):
        part = every[begin : begin + _TOGETHER]
        rows, heads = [layout.row(sizes) for sizes in part], [len(layout.head)] * len(part)
        possible = constraint.possible(make_canvas(rows, heads, model.spec, seeds=[0] * len(part)))
        found |= {sizes: None for sizes, may in zip(part, possible.tolist(), strict=True) if may}
    if not found:
        raise UserError(
            "holes of no size that they may have leave a way to satisfy the constraint.",
            "Change their sizes, the text around them or the constraint.",
        )
    return found


def _best(
    model: Model, layout: Layout, combinations: list[list[int]], free: list[int], by_length: list[float] | None
) -> list[int]:
    writer, spec = model.writer(), model.spec
    if spec.expand_id >= 0:  # a mask stands for one token here
        spec = replace(spec, forbidden=(*spec.forbidden, spec.expand_id, spec.delete_id))
    rows = [layout.row(sizes) for sizes in combinations]
    masked: list[Row] = []
    for sizes, row in zip(combinations, rows, strict=True):
        spans = [span for index, span in enumerate(layout.spans(sizes)) if index in free]
        near = {place for a, b in spans for place in [*range(a - _NEAR, a), *range(b, b + _NEAR)]}
        close = near & set(range(len(layout.head), len(row) - len(layout.tail)))
        masked.append([None if place in close else token for place, token in enumerate(row)])
    heads = [len(layout.head)] * len(rows)
    fits = first_look(writer, masked, heads, spec, rows)
    looks = first_look(writer, rows, heads, spec)
    scores = [fit.truth - look.entropy for fit, look in zip(fits, looks, strict=True)]
    if by_length is not None:
        scores = [score + by_length[len(row)] for score, row in zip(scores, rows, strict=True)]
    return combinations[max(range(len(rows)), key=scores.__getitem__)]


def _length_scores(model: Model, layout: Layout, most: Sequence[int]) -> list[float] | None:
    """log p of a row's length by the length head, by length of the row; None where there is no length head."""
    if not model.spec.length_head:
        return None
    prompt = torch.tensor([len(layout.head)])
    longest = len(layout.row(most))
    with torch.inference_mode():
        logits = model.writer()(length_request(torch.tensor([layout.head]), prompt, model.spec))
        log_p, lengths = best_lengths(logits, longest, longest)
    found = [-math.inf] * (longest + 1)
    for value, length in zip(log_p[0].tolist(), lengths[0].tolist(), strict=True):
        if length + len(layout.head) <= longest:
            found[length + len(layout.head)] = value
    return found
