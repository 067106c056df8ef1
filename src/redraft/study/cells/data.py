"""The data of a task: its rows as files for training, its tokenizer, and the items that models are asked."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redraft.compare.data import write_rows
from redraft.data.chat import example_ids
from redraft.data.columns import Columns
from redraft.data.examples import Example, load, read
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.items import Item, make_items
from redraft.files import read_json, remove, write_atomically
from redraft.study.cells.base import Bench, Cell
from redraft.tasks import infer_task

_LAST = "value.json"  # the file that is written last: the folder is complete


@dataclass(frozen=True)
class Source:
    """One data set of a task. ``marks`` identify the content of its files, wherever they are."""

    marks: str
    source: str = field(compare=False)
    text: str | None = None
    input: str | None = None
    target: str | None = None
    prompt: str = "{}"


@dataclass(frozen=True)
class Data(Cell):
    """Rows for training in ``OUT/data/ID``, the tokenizer beside them, and items for validation and test as the value.

    A smaller number of training rows is a part of a larger one: rows are drawn in one fixed order.
    """

    sources: tuple[Source, ...]
    tokenizer: str = "bpe"  # or bytes
    tokenizer_of: Data | None = None  # whose tokenizer is used
    vocab_size: int = 1000
    length: int = 128
    new_tokens: int = 48
    train_rows: int = 0
    train_bytes: int = 0
    validation_rows: int = 100
    test_rows: int = 200
    kind: str = ""
    task: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        return f"data of {self.task}"

    def inputs(self) -> dict[str, Any]:
        """Without the names of the files: their content is in the marks."""
        return {**super().inputs(), "sources": [{**vars(one), "source": ""} for one in self.sources]}

    @property
    def paired(self) -> bool:
        """Pairs of prompt and answer rather than plain text."""
        return not any(one.text for one in self.sources)

    def folder(self, out: Path) -> Path:
        """Where its files are."""
        return out / "data" / self.id

    def intact(self, out: Path) -> bool:
        return (self.folder(out) / _LAST).is_file()

    def work(self, bench: Bench) -> dict[str, Any]:
        """Read, limit, tokenise and write.

        Raises:
            UserError: the data can't be read, or no row fits.
        """
        train, validation, test = self._rows(bench)
        folder = self.folder(bench.out)
        if folder.exists():
            remove(folder)
        tokenizer = self._tokenizer(bench, train)
        if self.paired != (train[0].prompt is not None):
            kind = "plain text" if self.paired else "pairs"
            raise UserError(
                f"The data of '{self.task}' are {kind}.", "Name the columns: --text, or --input and --target."
            )
        validation, test = (self._fitting(rows, tokenizer) for rows in (validation, test))
        write_rows(train, folder / "train.jsonl")
        write_rows(validation, folder / "validation.jsonl")
        tokenizer.save(folder / "tokenizer")
        choice = infer_task(train[:5000], self.kind or None)
        items = {
            name: [dataclasses.asdict(one) for one in make_items(rows, tokenizer, most, self.paired, self.new_tokens)]
            for name, rows, most in (
                ("validation", validation, self.validation_rows),
                ("test", test, self.test_rows),
            )
        }
        write_rows(test, folder / "test.jsonl")
        value = {
            "rows": {"train": len(train), "validation": len(validation), "test": len(test)},
            "train_bytes": sum(len(e.target.encode()) for e in train),
            "tokenizer": tokenizer.fingerprint,
            "vocabulary": tokenizer.vocab_size,
            "task": choice.name,
            "reason": choice.reason,
            "items": items,
        }
        write_atomically(folder / _LAST, json.dumps(value, ensure_ascii=False))
        return value

    def items(self, out: Path, part: str) -> list[Item]:
        """The items of validation or test."""
        return items_of(read_json(self.folder(out) / _LAST), part)

    def examples(self, out: Path, part: str) -> list[Example]:
        """The rows of training, validation or test, as they were written."""
        columns = Columns(input="input", target="target") if self.paired else Columns(text="text")
        return list(read(str(self.folder(out) / f"{part}.jsonl"), columns))

    def _rows(self, bench: Bench) -> tuple[list[Example], list[Example], list[Example]]:
        parts: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
        for one in self.sources:
            columns = Columns(text=one.text, input=one.input, target=one.target)
            splits = load(one.source, columns if str(columns) else None, data_root=bench.data_root)
            for name, found in splits.items():
                if not found:
                    what = f"'{one.source}' has no rows in its {name} split."
                    raise UserError(what, "Give a file for each split, or one file that can be split.")
                parts[name] += [_framed(row, one.prompt) for row in found]
        return self._limited(parts["train"]), parts["validation"], parts["test"]

    def _limited(self, rows: list[Example]) -> list[Example]:
        """The first of the rows in a fixed random order, up to the limits; all of them in their own order."""
        if not (self.train_rows or self.train_bytes):
            return rows
        order = random.Random(0).sample(range(len(rows)), len(rows))
        if self.train_rows:
            if len(rows) < self.train_rows:
                what = f"The task '{self.task}' has {len(rows)} training rows, and {self.train_rows} are wanted."
                raise UserError(what, "Lower train_rows in the recipe, or give more data.")
            order = order[: self.train_rows]
        if self.train_bytes:
            kept, size = [], 0
            for number in order:
                size += len(rows[number].target.encode())
                kept.append(number)
                if size >= self.train_bytes:
                    break
            order = kept
        return [rows[number] for number in sorted(order)]

    def _tokenizer(self, bench: Bench, train: Sequence[Example]) -> Tokenizer:
        if self.tokenizer_of is not None:
            return Tokenizer.load(self.tokenizer_of.folder(bench.out) / "tokenizer")
        if self.tokenizer == "bytes":
            return Tokenizer.bytes()
        return Tokenizer.train((text for e in train for text in (e.prompt, e.target) if text), self.vocab_size)

    def _fitting(self, rows: Sequence[Example], tokenizer: Tokenizer) -> list[Example]:
        """Rows that fit the length, the prompt together with the longest answer too; plain texts always do."""
        if rows[0].prompt is None:
            return list(rows)
        prompts, targets = example_ids(list(rows), tokenizer)
        fits = [
            row
            for row, prompt, target in zip(rows, prompts, targets, strict=True)
            if len(prompt) + max(len(target), self.new_tokens) <= self.length
        ]
        if len(fits) < 2:
            what = (
                f"No two held-out rows of '{self.task}' fit into {self.length} tokens with {self.new_tokens} new ones."
            )
            raise UserError(what, "Raise length, or lower new_tokens in the recipe.")
        return fits


def items_of(value: dict[str, Any], part: str) -> list[Item]:
    """The items of a computed task."""
    return [
        Item(one["prompt"], tuple(one["references"]), one["tokens"], one["task"], tuple(map(tuple, one["turns"])))
        for one in value["items"][part]
    ]


def _framed(row: Example, frame: str) -> Example:
    return row if frame == "{}" or row.prompt is None else replace(row, prompt=frame.format(row.prompt))
