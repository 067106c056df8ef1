"""Texts with slots: parse them, and encode their rows with labels in the slots."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from redraft.errors import UserError, suggest
from redraft.generation.holes import Hole, HoleLayout, length_scores
from redraft.generation.sampling import check_numbers

if TYPE_CHECKING:
    from redraft.data.tokenizer import Tokenizer
    from redraft.model import Model

_NAME = r"[^\W\d]\w*"
_MARK = re.compile(
    rf"\[\[(?P<bracket>{_NAME})\]\]|\{{\{{(?P<brace>{_NAME})\}}\}}|\[(?P<slot>{_NAME})\]|\{{(?P<field>{_NAME})\}}"
)
Labels = Mapping[str, Sequence[str]]  # the allowed labels of each slot
Row = Mapping[str, str]  # the text of each field
Scores = list[list[float]]  # a number for each label of each slot


@dataclass(frozen=True)
class Part:
    """A piece of a text: given text, a field that each row fills, or a slot that the model fills."""

    kind: Literal["text", "field", "slot"]
    text: str  # the given text, or the name


def parse(text: str) -> list[Part]:
    """``"Review: {text} Sentiment: [sentiment]"`` -> its parts. ``{{name}}`` and ``[[name]]`` are text in brackets."""
    found, end = [], 0
    for mark in _MARK.finditer(text):
        found.append(Part("text", text[end : mark.start()]))
        end = mark.end()
        if mark["slot"] is not None:
            found.append(Part("slot", mark["slot"]))
        elif mark["field"] is not None:
            found.append(Part("field", mark["field"]))
        else:
            found.append(Part("text", mark[0][1:-1]))
    return [part for part in [*found, Part("text", text[end:])] if part.text]


@dataclass(frozen=True)
class SlotTemplate:
    """A text with slots, the prompt that it answers (for models of pairs), and the labels of the slots."""

    model: Model
    parts: Sequence[Part]
    prompt: Sequence[Part]
    labels: Labels
    _ids: dict[tuple[str, bool], tuple[tuple[int, ...], ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, model: Model, text: str, labels: Labels, prompt: str = "") -> SlotTemplate:
        """Parse and check.

        Raises:
            UserError: a slot without labels, labels without a slot, a slot that occurs twice or in the prompt, fewer
                than two labels, equal labels, or a label that the vocabulary can't express.
        """
        made = cls(model, parse(text), parse(prompt), {name: tuple(own) for name, own in labels.items()})
        made._check()
        return made

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The slots in the order of the text."""
        return tuple(part.text for part in self.parts if part.kind == "slot")

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """The fields of text and prompt."""
        every = [*self.prompt, *self.parts]
        return tuple(dict.fromkeys(part.text for part in every if part.kind == "field"))

    def _check(self) -> None:
        if any(part.kind == "slot" for part in self.prompt):
            raise UserError("The prompt has a slot.", "Slots belong to the text that answers the prompt.")
        if not self.names:
            raise UserError("The text has no slot.", "Write a slot in brackets: 'Sentiment: [sentiment]'.")
        for name in self.names:
            if name not in self.labels:
                known = suggest(name, self.labels)
                raise UserError(
                    f"The slot [{name}] has no labels. {known}",
                    f"Name its labels, or write [[{name}]] for text in brackets.",
                )
            if self.names.count(name) > 1:
                raise UserError(f"The slot [{name}] occurs twice.", "Give each slot a name of its own.")
        for name, own in self.labels.items():
            if name not in self.names:
                raise UserError(f"The text has no slot [{name}].", suggest(name, self.names))
            if len(own) < 2:
                raise UserError(f"The slot [{name}] has fewer than two labels.", "Give at least two.")
            for space in (False, True):
                self.ids(name, space)

    def ids(self, name: str, space: bool) -> tuple[tuple[int, ...], ...]:
        """The token ids of each label of a slot.

        Args:
            space: the first token contains the space before the slot (``HoleLayout.spaces``).
        Raises:
            UserError: a label is empty, equals another one, or can't be expressed with the model's vocabulary.
        """
        if (name, space) not in self._ids:
            self._ids[name, space] = self._encoded(name, " " * space)
        return self._ids[name, space]

    def _encoded(self, name: str, space: str) -> tuple[tuple[int, ...], ...]:
        tokenizer, own = self.model.tokenizer, self.labels[name]
        for label in own:
            if not isinstance(label, str) or not label.strip():
                raise UserError(f"The slot [{name}] has the label {label!r}, which is no text.", "Write a word.")
        found: dict[tuple[int, ...], str] = {}
        for label, ids in zip(own, tokenizer.encode_batch([space + label for label in own]), strict=True):
            key = tuple(ids)
            if not ids or _compact(tokenizer.decode(ids)) != _compact(_normalised(label, tokenizer)):
                raise UserError(
                    f"The vocabulary of this model can't express the label {label!r} of the slot [{name}].",
                    "Use other words for it.",
                )
            if key in found:
                same = "occurs twice" if found[key] == label else f"has the same tokens as {found[key]!r}"
                raise UserError(f"The label {label!r} of the slot [{name}] {same}.", "Give labels that differ.")
            found[key] = label
        return tuple(found)

    def text(self, row: Row, where: str = "") -> SlotText:
        """The text with the fields of a row.

        Args:
            where: the origin of the row for errors, such as ``file:line``.
        Raises:
            UserError: a field is missing or not a text, or the text with its longest labels exceeds the context.
        """
        for name in self.fields:
            if not isinstance(row.get(name), str):
                what = f"has no field '{name}'" if name not in row else f"has a field '{name}' that is not a text"
                subject = f"{where}: The row" if where else "A row"
                raise UserError(f"{subject} {what}.", suggest(name, row) if row else "Give its value.")
        parts: list[str | Hole] = []
        for part in self.parts:
            filled = row[part.text] if part.kind == "field" else part.text
            parts.append(Hole(1, 1) if part.kind == "slot" else filled)
        prompt = "".join(row[part.text] if part.kind == "field" else part.text for part in self.prompt)
        layout = HoleLayout.of(self.model, parts, prompt)
        found = SlotText(self, layout)
        layout.check([max(map(len, own)) for own in found.ids])
        return found

    def empty(self) -> SlotText:
        """The text whose fields are empty, what calibration compares with. Without fields, it has an empty prompt.

        Raises:
            UserError: there are no fields and no prompt, so that it is the text itself.
        """
        if not self.fields and not self.prompt:
            raise UserError(
                "Calibration compares with a text whose fields are empty, and this text has none.",
                "Mark what changes from text to text: 'Review: {text} Sentiment: [sentiment]'.",
            )
        prompt = self.prompt if self.fields else ()
        return SlotTemplate(self.model, self.parts, prompt, self.labels, self._ids).text(dict.fromkeys(self.fields, ""))


@dataclass(frozen=True)
class SlotText:
    """One text with slots: rows of token ids with labels in some of its slots and masks in the others."""

    template: SlotTemplate
    layout: HoleLayout

    @cached_property
    def ids(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """The token ids of each label of each slot, in the order of the text."""
        pairs = zip(self.template.names, self.layout.spaces, strict=True)
        return tuple(self.template.ids(name, space) for name, space in pairs)

    def row(self, sizes: Sequence[int], decided: Mapping[int, int]) -> list[int | None]:
        """Token ids of a row with ``sizes`` positions in the slots.

        Args:
            decided: the label of each slot that is not masked, both as numbers.
        """
        row = self.layout.row(sizes)
        for slot, label in decided.items():
            begin, end = self.layout.spans(sizes)[slot]
            row[begin:end] = self.ids[slot][label]
        return row

    def unit(self, slot: int, label: int, by: str) -> int:
        """What the score of a label is divided by: its tokens or bytes, or 1 (``by`` is sum)."""
        if by == "sum":
            return 1
        own = self.template.labels[self.template.names[slot]][label]
        return len(self.ids[slot][label]) if by == "token" else len(own.encode())

    def filled(self, labels: Sequence[str]) -> str:
        """The text with these labels."""
        pieces = [part for pair in zip(self.layout.texts, [*labels, ""], strict=True) for part in pair]
        return "".join(pieces)


@dataclass(frozen=True)
class State:
    """A text, and the label of each slot that is decided, both as numbers."""

    text: SlotText
    decided: Mapping[int, int]


def _normalised(label: str, tokenizer: Tokenizer) -> str:
    normalizer = tokenizer.backend.normalizer
    return label if normalizer is None else str(normalizer.normalize_str(label))


def _compact(text: str) -> str:
    return "".join(text.split()).replace("\u2581", "")


def length_log_p(
    model: Model,
    texts: Sequence[SlotText],
    rows: Sequence[Sequence[int | None]],
    owner: Sequence[int],
    checkpoint: Callable[[], None],
) -> list[float] | None:
    """log p of the length of each row by the length head, in one pass; None without one, or if lengths don't differ.

    Args:
        owner: the number of the text of each row. checkpoint: called before the pass; it may raise an exception.
    """
    sizes: dict[int, set[int]] = {}
    for row, number in zip(rows, owner, strict=True):
        sizes.setdefault(number, set()).add(len(row))
    if not model.spec.network.length_head or all(len(own) == 1 for own in sizes.values()):
        return None
    checkpoint()
    found = length_scores(model, [text.layout.head for text in texts], max(map(len, rows)))
    assert found is not None
    return [found[number][len(row)] for row, number in zip(rows, owner, strict=True)]


def softmax(scores: Sequence[float]) -> list[float]:
    """exp(score) of each, normalised to 1.

    Raises:
        UserError: the network's predictions are not numbers.
    """
    check_numbers(np.array(scores))
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / math.fsum(weights) for weight in weights]
