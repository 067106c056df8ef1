"""Items: rows of data turned into a prompt and its reference answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from redraft.data.chat import example_ids
from redraft.data.columns import Turns
from redraft.data.examples import Example
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.prompts import Prompt, longest
from redraft.model import Model

PROMPT_TOKENS = 32  # length of the prompt that is cut from a plain text
_MARGIN = 64  # tokens that may stand around a prompt
Log = Callable[[str], None]
SHORTEST = 8  # a plain text with fewer tokens is not used


@dataclass(frozen=True)
class Item:
    """A prompt and every reference answer that the data hold for it."""

    prompt: str
    references: tuple[str, ...]
    tokens: int  # of the first reference
    task: str = ""  # name of its task in a mixture
    turns: tuple[tuple[str, str], ...] = ()  # of a conversation: role and content; ``prompt`` shows them
    options: tuple[str, ...] = ()  # of a question of multiple choice
    suffix: str = ""  # what stands after a gap that is to be filled
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)  # all columns of a benchmark's row

    @property
    def asked(self) -> Prompt:
        """What a model is asked: the conversation, if it is one, else the prompt's text."""
        return self.turns or self.prompt


def make_items(
    examples: Sequence[Example], tokenizer: Tokenizer, most: int, paired: bool, new_tokens: int
) -> list[Item]:
    """At most ``most`` items, the same ones in every run. Rows with the same prompt become one item.

    A plain text becomes a prompt of its first ``PROMPT_TOKENS`` tokens and a reference of the next ``new_tokens``
    tokens. If no text is long enough for that, short texts are cut in the middle.

    Raises:
        UserError: no text is long enough to be cut.
    """
    if paired:
        together: dict[tuple[str, str, Turns, tuple[str, ...], str], list[Example]] = {}
        for example in examples:
            asked = (example.prompt or "", example.task, example.turns, example.options, example.suffix)
            together.setdefault(asked, []).append(example)
        chosen = sample(list(together.items()), most)
        _, targets = example_ids([same[0] for _, same in chosen], tokenizer)
        items = []
        for ((prompt, task, turns, options, suffix), same), target in zip(chosen, targets, strict=True):
            size = len(target) + (not tokenizer.answer_suffix)
            right = tuple(dict.fromkeys(text for one in same for text in one.references or (one.target,)))
            items.append(Item(prompt, right, size, task, turns, options, suffix, same[0].values or {}))
        return items
    every = tokenizer.encode_batch([e.target for e in examples])
    long = [ids for ids in every if len(ids) >= 2 * PROMPT_TOKENS]
    whole = long or [ids for ids in every if len(ids) >= SHORTEST]
    if not whole:
        raise UserError(f"No text has {SHORTEST} tokens, so none can be continued.", "Give longer texts.")
    heads = [min(PROMPT_TOKENS, len(ids) // 2) for ids in whole]
    cut = [
        (ids[:head], ids[head : head + new_tokens]) for ids, head in sample(list(zip(whole, heads, strict=True)), most)
    ]
    return [Item(tokenizer.decode(head), (tokenizer.decode(tail),), len(tail)) for head, tail in cut]


def fitting(model: Model, examples: Sequence[Example], new_tokens: int, skip: bool, log: Log) -> list[Example]:
    """The examples that fit into the model's context: the whole pair to score it, the prompt with ``new_tokens`` to
    answer it. Plain texts always do: they are cut.

    Args:
        skip: leave out longer rows and tell ``log``; otherwise they are an error.
    Raises:
        UserError: a row is too long, or none fits.
    """
    context = model.network.config.max_length
    scored = min(longest(model), context - 1)
    # A token has at least one byte, apart from the few special ones, so most rows need not be tokenised.
    most = min(scored, context - new_tokens) - _MARGIN
    at = [
        number
        for number, example in enumerate(examples)
        if example.prompt is not None
        and (example.turns or len((example.prompt + example.target + example.suffix).encode()) > most)
    ]
    long: dict[int, int] = {}
    for number, head, target in zip(at, *example_ids([examples[i] for i in at], model.tokenizer), strict=True):
        head = head + model.tokenizer.encode(examples[number].suffix)
        if len(head) + len(target) > scored or len(head) + new_tokens > context:
            long[number] = max(len(head) + len(target), len(head) + new_tokens)
    if not long:
        return list(examples)
    first = next(iter(long))
    what = (
        f"{len(long):,} of {len(examples):,} rows don't fit the model's context of {context} tokens with {new_tokens} "
        f"new ones, the first: {examples[first].where} ({long[first]} tokens)"
    )
    if not skip or len(long) == len(examples):
        remedy = "Lower --max-new-tokens, or leave such rows out with --skip-bad-rows."
        raise UserError(f"{what}.", "Use a model with a longer context." if skip else remedy)
    log(f"{what}; they were left out.")
    return [example for number, example in enumerate(examples) if number not in long]


def sample(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` rows in their order, the same ones in every run."""
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), most))]


def check_kind(model: Model, name: str, examples: Sequence[Example]) -> None:
    """Check that the data are of the kind that a model was trained on: pairs, or plain text.

    Raises:
        UserError: they are not.
    """
    paired = examples[0].prompt is not None
    if model.paired and not paired:
        raise UserError(
            f"'{name}' is a model of pairs; the data are plain text.", "Name the columns with --input and --target."
        )
    if paired and not model.paired:
        raise UserError(f"'{name}' is a model of plain text; the data are pairs.", "Name the column with --text.")
