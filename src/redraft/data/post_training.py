"""Data of post-training: preferences (prompt, chosen, rejected) and prompts whose answers are generated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

import numpy as np

from redraft.data.columns import (
    BadRow,
    Columns,
    Turns,
    choose_columns,
    filled,
    joined,
    lines_of,
    messages_of,
    text_of,
    turns_of,
)
from redraft.data.examples import Example
from redraft.data.loader import Fit, Pairs, Tokenised, fit
from redraft.data.rows import Row
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError, suggest
from redraft.types import Batch

_PROMPTS = ("prompt", "question", "instruction", "input", "problem")  # names of a column of prompts, in this order


# ---- rows


@dataclass(frozen=True)
class PreferenceRows:
    """Rows of a prompt, a preferred and a rejected answer, in the columns of ``trl``: prompt, chosen, rejected.

    They are texts or lists of messages. Without a column of prompts, what both answers begin with is the prompt: whole
    messages, or whole words of texts.
    """

    rejected: str = "rejected"

    def choose(self, wanted: Columns, row: Row) -> Columns:
        """As ``RowFormat.choose``.

        Raises:
            UserError: a column does not exist, or a plain text or conversation is named.
        """
        present = list(row.values)
        if wanted.text is not None or wanted.messages is not None:
            raise UserError("Preferences have prompts and answers.", "Give --input and --target instead of --text.")
        prompt = wanted.input or ("prompt" if "prompt" in present else None)
        chosen = Columns(input=prompt, target=wanted.target or "chosen", rejected=self.rejected)
        for name in (chosen.input, chosen.target, chosen.rejected):
            if name is not None and name not in present and name.split("+")[0].split(".")[0] not in present:
                raise UserError(f"{row.file} has no column '{name}'.", suggest(name, present))
        return chosen

    def reader(self, columns: Columns) -> Callable[[Row], list[Example]]:
        """As ``RowFormat.reader``."""

        def examples(row: Row) -> list[Example]:
            assert columns.target is not None and columns.rejected is not None
            values, names = row.values, (columns.target, columns.rejected)
            if isinstance(values.get(columns.target), list):
                prompt, turns, answers = _of_messages(values, columns.input, names)
            else:
                turns = ()
                prompt, answers = _of_texts(values, columns.input, names)
            chosen, rejected = (filled(text, name) for text, name in zip(answers, names, strict=True))
            return [Example(prompt, chosen, row.where, row.task, turns, rejected)]

        return examples


def _of_texts(values: Mapping[str, Any], prompt: str | None, names: Sequence[str]) -> tuple[str, list[str]]:
    """The prompt and the two answers."""
    answers = [joined(values, name) for name in names]
    if prompt is not None:
        return joined(values, prompt), answers
    common = commonprefix(answers)
    size = max((at for at, character in enumerate(common) if character.isspace()), default=-1) + 1
    if not size:
        raise BadRow(f"columns '{names[0]}' and '{names[1]}' don't begin with the same prompt")
    return common[:size], [answer[size:] for answer in answers]


def _of_messages(values: Mapping[str, Any], prompt: str | None, names: Sequence[str]) -> tuple[str, Turns, list[str]]:
    """The prompt as text and as messages, and the two answers."""
    given: Turns = ()
    if prompt is not None:
        one = values.get(prompt)
        given = (("user", one),) if isinstance(one, str) else turns_of(messages_of(values, prompt))
    chosen, rejected = (turns_of(messages_of(values, name)) for name in names)
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    turns = given + chosen[:same]
    rest = chosen[same:], rejected[same:]
    if not turns or any(len(part) != 1 or part[0][0] != "assistant" for part in rest):
        raise BadRow(
            f"columns '{names[0]}' and '{names[1]}' are not the same messages followed by one of the assistant each"
        )
    return lines_of(turns), turns, [part[0][1] for part in rest]


@dataclass(frozen=True)
class PromptRows:
    """Rows of a prompt (a text or messages), with an optional reference answer; rewards may read all their columns."""

    def choose(self, wanted: Columns, row: Row) -> Columns:
        """As ``RowFormat.choose``.

        Raises:
            UserError: a column does not exist, or none is recognised as the prompt.
        """
        present = list(row.values)
        if wanted.input is not None and wanted.target is not None:
            return choose_columns(wanted, row)
        if wanted.text is not None or (wanted.target is not None and wanted.input is None):
            raise UserError("Rewards are given to answers of prompts.", "Name the column of the prompts with --input.")
        if wanted.input is not None:
            name = wanted.input
            if name not in present and name.split("+")[0].split(".")[0] not in present:
                raise UserError(f"{row.file} has no column '{name}'.", suggest(name, present))
            return wanted
        if "messages" in present:
            return Columns(messages="messages")
        try:
            found = choose_columns(wanted, row)
            if found.input is not None:
                return found
        except UserError:  # no pair of columns is recognised, but a prompt alone may be
            pass
        known = next((name for name in _PROMPTS if name in present), None)
        if known is None:
            what = f"{row.file}: no column has a name of prompts (columns: {', '.join(present)})."
            raise UserError(what, "Name the column of the prompts with --input.")
        return Columns(input=known)

    def reader(self, columns: Columns) -> Callable[[Row], list[Example]]:
        """As ``RowFormat.reader``."""

        def examples(row: Row) -> list[Example]:
            values, name = row.values, columns.input
            reference, turns = "", Turns()
            if columns.messages is not None or isinstance(values.get(name or ""), list):
                turns = turns_of(messages_of(values, columns.messages or name or ""))
                if turns and turns[-1][0] == "assistant":
                    reference, turns = turns[-1][1], turns[:-1]
                if not turns:
                    raise BadRow("it has no message to answer")
                prompt = lines_of(turns)
            else:
                prompt = joined(values, name or "")
            if columns.target is not None:
                one = values.get(columns.target)
                reference = str(one) if isinstance(one, int | float) else text_of(values, columns.target)
            return [Example(prompt, reference, row.where, row.task, turns, values=dict(values))]

        return examples


# ---- batches


@dataclass
class Comparisons(Tokenised):
    """Preferences: the first half of the rows are preferred answers, the second half the rejected ones, in order.

    A row of the data takes ``copies`` rows of the length of the longer answer for each of both.
    """

    copies: int = 1

    def assembler(self, tokenizer: Tokenizer, length: int, batch_tokens: int, too_long: str) -> tuple[Pairs, Fit]:
        """What makes batches of the pairs both of whose answers fit.

        Raises:
            UserError: as ``Loader``; or the prompt would be cut, which differs between the answers.
        """
        if too_long == "truncate_prompt":
            raise UserError("Prompts of preferences can't be cut.", "Set [data] too_long to skip.")
        pairs, (data, fitted) = len(self) // 2, fit(self, length, too_long)
        kept = np.intersect1d(fitted.rows[fitted.rows < pairs], fitted.rows[fitted.rows >= pairs] - pairs)
        if not len(kept):
            raise UserError(f"In no pair both answers fit into {length} tokens.", "Raise the maximum length.")
        cost = 2 * self.copies * self.lengths.reshape(2, pairs).max(0)
        skipped = list(dict.fromkeys(fitted.skipped))
        return _Both(data, kept, tokenizer.pad_id, batch_tokens, cost), Fit(kept, skipped)


class _Both(Pairs):
    """Batches of preferred answers, followed by the rejected answers to the same prompts."""

    def assemble(self, batch: np.ndarray) -> Batch:
        """The batch of these pairs."""
        return super().assemble(np.concatenate([batch, batch + len(self.data) // 2]))


@dataclass
class Prompts(Tokenised):
    """Prompts to answer: a row is a prompt and the end of an empty answer.

    In training it takes ``copies`` rows with an answer of up to ``answer`` tokens.
    """

    copies: int = 1
    answer: int = 0

    def assembler(self, tokenizer: Tokenizer, length: int, batch_tokens: int, too_long: str) -> tuple[Pairs, Fit]:
        """What makes batches of the prompts that fit. Arguments and errors as in ``Loader``."""
        data, fitted = fit(self, length, too_long)
        assert data.prompts is not None
        cost = self.copies * (data.prompts + self.answer)
        return Pairs(data, fitted.rows, tokenizer.pad_id, batch_tokens, cost), fitted


def tokenise_preferences(examples: Sequence[Example], tokenizer: Tokenizer) -> Comparisons:
    """Tokenise preferences.

    Raises:
        UserError: there are no examples.
    """
    rejected = [replace(example, target=example.rejected) for example in examples]
    return Comparisons(**vars(tokenise([*examples, *rejected], tokenizer)))


def tokenise_prompts(examples: Sequence[Example], tokenizer: Tokenizer) -> Prompts:
    """Tokenise the prompts of examples.

    Raises:
        UserError: there are no examples.
    """
    return Prompts(**vars(tokenise([replace(example, target="") for example in examples], tokenizer)))
