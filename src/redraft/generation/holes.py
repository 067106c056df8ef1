"""The holes of a text: their token ids, and the choice of their sizes before generation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from redraft.canvas import make_canvas
from redraft.errors import UserError
from redraft.generation.first_pass import Row, first_pass
from redraft.generation.length import best_lengths
from redraft.generation.prompts import answer_suffix, check_length, prompt_ids
from redraft.samplers.shared.common import length_request

if TYPE_CHECKING:
    from redraft.generation.loop import Constraint
    from redraft.model import Model
    from redraft.types import Spec

NEIGHBOURS = 2  # given tokens on each side of a hole whose log-probability is part of the score of its size
_MOST_CHECKED = 4096  # largest number of combinations of sizes that a constraint checks
_MOST_SCORED = 64  # largest number of combinations that are all scored; with more, one hole is varied at a time


def go_on() -> None:
    """The checkpoint of a search that nothing ends."""


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
    model: Model,
    layout: HoleLayout,
    holes: Sequence[Hole],
    constraint: Constraint | None = None,
    checkpoint: Callable[[], None] = go_on,
) -> tuple[list[int], int]:
    """The sizes of the holes with the highest score, among those that the constraint allows, and the passes it took.

    Two rows with empty holes are run for each combination of sizes. Its score is the sum of

    - minus the mean entropy of the predictions in the holes, in nats: a hole of the right size is easy to fill (CAL,
      Liu et al. 2026, arXiv:2602.00476, uses the mean confidence);
    - log p of the two given tokens on each side of a hole, masked too: they fit the text only at the right distance;
    - log p of the row's length, if the model has a length head.

    ``checkpoint`` is called before every forward pass.
    """
    ranges = [range(hole.least, hole.most + 1) for hole in holes]
    if math.prod(len(sizes) for sizes in ranges) == 1:
        return [sizes[0] for sizes in ranges], 0
    free = [index for index, sizes in enumerate(ranges) if len(sizes) > 1]
    allowed = None if constraint is None else _allowed(model, layout, ranges, constraint, checkpoint)
    by_length = _length_scores(model, layout, [hole.most for hole in holes])
    passes = 0 if by_length is None else 1
    count = math.prod(len(sizes) for sizes in ranges) if allowed is None else len(allowed)
    if count <= _MOST_SCORED:
        combinations = [list(each) for each in (itertools.product(*ranges) if allowed is None else allowed)]
        return _best(model, layout, combinations, free, by_length, checkpoint), passes + 2
    sizes = [(hole.least + hole.most) // 2 for hole in holes]
    if allowed is not None:  # start from the nearest allowed sizes
        sizes = list(min(allowed, key=lambda each: sum(abs(a - b) for a, b in zip(each, sizes, strict=True))))
    for index in [*free, *(free if len(free) > 1 else [])]:  # two rounds, because the sizes depend on each other
        combinations = [[*sizes[:index], size, *sizes[index + 1 :]] for size in ranges[index]]
        combinations = [each for each in combinations if allowed is None or tuple(each) in allowed]
        sizes = _best(model, layout, combinations, free, by_length, checkpoint)
        passes += 2
    return sizes, passes


def _allowed(
    model: Model,
    layout: HoleLayout,
    ranges: Sequence[range],
    constraint: Constraint,
    checkpoint: Callable[[], None],
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
        checkpoint()
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
    model: Model,
    layout: HoleLayout,
    combinations: list[list[int]],
    free: list[int],
    by_length: list[float] | None,
    checkpoint: Callable[[], None],
) -> list[int]:
    network, spec = model.inference_network(), fixed_size_spec(model)
    rows = [layout.row(sizes) for sizes in combinations]
    masked: list[Row] = []
    for sizes, row in zip(combinations, rows, strict=True):
        spans = [span for index, span in enumerate(layout.spans(sizes)) if index in free]
        near = {i for begin, end in spans for i in [*range(begin - NEIGHBOURS, begin), *range(end, end + NEIGHBOURS)]}
        near &= set(range(len(layout.head), len(row) - len(layout.tail)))
        masked.append([None if i in near else token for i, token in enumerate(row)])
    heads = [len(layout.head)] * len(rows)
    neighbours = first_pass(network, masked, heads, spec, rows, checkpoint)
    holes = first_pass(network, rows, heads, spec, checkpoint=checkpoint)
    scores = [sides.truth - hole.entropy for sides, hole in zip(neighbours, holes, strict=True)]
    if by_length is not None:
        scores = [score + by_length[len(row)] for score, row in zip(scores, rows, strict=True)]
    return combinations[max(range(len(rows)), key=scores.__getitem__)]


def fixed_size_spec(model: Model) -> Spec:
    """The model's spec where each mask stands for one token, also for a model that inserts and deletes."""
    spec = model.spec
    if spec.tokens.expand_id < 0:
        return spec
    return spec.with_tokens(forbidden=(*spec.tokens.forbidden, spec.tokens.expand_id, spec.tokens.delete_id))


def _length_scores(model: Model, layout: HoleLayout, most: Sequence[int]) -> list[float] | None:
    """log p of a row's length by the length head, indexed by that length; None without a length head."""
    found = length_scores(model, [layout.head], len(layout.row(most)))
    return None if found is None else found[0]


def length_scores(model: Model, heads: Sequence[list[int]], longest: int) -> list[list[float]] | None:
    """log p of the length of rows with these prompts by the length head, each indexed by that length up to ``longest``;
    None without a length head. One forward pass.
    """
    spec = model.spec
    if not spec.network.length_head:
        return None
    prompt, rows = torch.tensor([len(head) for head in heads]), torch.arange(len(heads))
    width = int(prompt.max())
    ids = torch.tensor([[*head, *[spec.tokens.pad_id] * (width - len(head))] for head in heads])
    with torch.inference_mode():
        logits = model.inference_network()(length_request(ids, prompt, spec, rows))
        log_p, lengths = best_lengths(logits, longest, longest)
    found = [[-math.inf] * (longest + 1) for _ in heads]
    for own, head, values, sizes in zip(found, heads, log_p.tolist(), lengths.tolist(), strict=True):
        for value, length in zip(values, sizes, strict=True):
            if length + len(head) <= longest:
                own[length + len(head)] = value
    return found
