"""What a study works on: its rows, cut into parts, and how they are asked and answered."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redraft.compare.study import Study, digest
from redraft.data.examples import Columns, Example, Splits, load, normalise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.files import write_atomically
from redraft.metrics import Metric, Score
from redraft.tasks import Choice, choose

LOOK = 5000  # rows looked at to guess the task
FRACTIONS = (0.9, 0.04, 0.06)  # train, validation, test, of data without splits of their own
SMALL, FRACTIONS_SMALL = 8000, (0.8, 0.08, 0.12)  # rows; few test rows decide nothing
PROMPT_TOKENS, NEW_TOKENS = 32, 64  # of a continuation of plain text
SHORTEST = 8  # tokens of a text that can be continued
LONGEST = 512  # rows longer than this many tokens are left out unless the study names a length


@dataclass(frozen=True)
class Item:
    """Something to be answered: a prompt, and every answer the data hold for it."""

    prompt: str
    references: tuple[str, ...]
    tokens: int  # of the first reference
    task: str = ""  # which of a mixture


@dataclass
class Material:
    """The rows of a study."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    paired: bool
    choice: Choice
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)  # what was left out, and why
    leaks: int = 0  # test rows whose input is also a training row's

    @property
    def sha(self) -> str:
        """Of all rows, in order."""
        parts = (self.train, self.validation, self.test)
        return digest([[(e.prompt, e.target) for e in part] for part in parts])


def gather(study: Study) -> Material:
    """Read the data, cut them into parts and find out what kind of job they are.

    Raises:
        UserError: whatever is wrong with the data, or a part without rows.
    """
    splits = _splits(study, FRACTIONS)
    if sum(len(part) for _, part in splits.items()) < SMALL:
        splits = _splits(study, FRACTIONS_SMALL)
    for name, part in splits.items():
        if len(part) < 2:
            raise UserError(f"'{study.data}' has {len(part)} rows for {name}; a comparison needs 2 or more.")
    train, validation, test = splits.train.rows, splits.validation.rows, splits.test.rows
    paired = train[0].prompt is not None
    skipped = sum(len(part.skipped) for _, part in splits.items())
    notes = [f"{skipped} bad rows were left out"] if skipped else []
    known = {normalise(_key(example)) for example in train}
    chosen = splits.train.columns
    return Material(
        train=train,
        validation=validation,
        test=test,
        paired=paired,
        choice=choose(train[:LOOK], study.task),
        columns={k: v for k, v in vars(chosen).items() if v},
        notes=notes,
        leaks=sum(normalise(_key(example)) in known for example in test),
    )


def fit(material: Material, tokenizer: Tokenizer, length: int) -> tuple[Material, int]:
    """Leave out pairs that don't fit into ``length`` tokens (0: the longest row, at most LONGEST), and say so.

    Returns:
        the material, and the length.
    Raises:
        UserError: no row fits.
    """
    if not material.paired:
        return material, length or 256
    parts = (material.train, material.validation, material.test)
    sizes = [_sizes(part, tokenizer) for part in parts]
    length = length or min(LONGEST, max(max(size) for size in sizes))
    kept = [
        [e for e, n in zip(part, size, strict=True) if n <= length] for part, size in zip(parts, sizes, strict=True)
    ]
    notes = list(material.notes)
    for name, part, left in zip(("training", "validation", "test"), parts, kept, strict=True):
        if not left:
            raise UserError(f"no {name} row fits into {length} tokens.", "Raise the length.")
        if len(left) < len(part):
            notes.append(
                f"{len(part) - len(left)} of {len(part)} {name} rows are longer than {length} tokens: left out"
            )
    train, validation, test = kept
    return replace(material, train=train, validation=validation, test=test, notes=notes), length


def answer_length(material: Material, tokenizer: Tokenizer, longest: int) -> int:
    """Tokens to allow an answer: a tenth more than nearly all training targets have, end-of-text counted."""
    if not material.paired:
        return NEW_TOKENS
    sizes = sorted(len(ids) + 1 for ids in tokenizer.encode_batch([e.target for e in material.train[:20_000]]))
    return max(2, min(longest, int(1.1 * sizes[int(0.999 * (len(sizes) - 1))]) + 1))


def items(examples: Sequence[Example], tokenizer: Tokenizer, most: int, paired: bool, new_tokens: int) -> list[Item]:
    """At most ``most`` items, the same ones every time. Rows with one prompt are one item with several references.

    Plain text becomes a prompt of its first tokens and a reference of as many as are to be written. Where no text is
    long enough for that, short ones are cut in the middle.

    Raises:
        UserError: no text is long enough to be cut.
    """
    if paired:
        together: dict[tuple[str, str], list[str]] = {}
        for example in examples:
            together.setdefault((example.prompt or "", example.task), []).append(example.target)
        chosen = _some(list(together.items()), most)
        sizes = [len(ids) + 1 for ids in tokenizer.encode_batch([targets[0] for _, targets in chosen])]
        return [Item(p, tuple(dict.fromkeys(t)), n, task) for ((p, task), t), n in zip(chosen, sizes, strict=True)]
    every = tokenizer.encode_batch([e.target for e in examples])
    long = [ids for ids in every if len(ids) >= 2 * PROMPT_TOKENS]
    whole = long or [ids for ids in every if len(ids) >= SHORTEST]
    if not whole:
        raise UserError(f"no text has {SHORTEST} tokens, so none can be continued.", "Give longer texts.")
    heads = [min(PROMPT_TOKENS, len(ids) // 2) for ids in whole]
    cut = [
        (ids[:head], ids[head : head + new_tokens]) for ids, head in _some(list(zip(whole, heads, strict=True)), most)
    ]
    return [Item(tokenizer.decode(head), (tokenizer.decode(tail),), len(tail)) for head, tail in cut]


def score(metric: Metric, texts: Sequence[str], items: Sequence[Item]) -> Score:
    """A metric on the answers to items."""
    return metric.score(texts, [item.references for item in items], [item.task for item in items])


def _splits(study: Study, fractions: tuple[float, float, float]) -> Splits:
    columns = Columns(text=study.text, input=study.input, target=study.target)
    named = columns if str(columns) else None
    root = study.data_root or None
    return load(study.data, named, data_root=root, fractions=fractions, skip_bad_rows=study.skip_bad_rows)


def write(examples: Sequence[Example], path: Path) -> None:
    """Rows as JSON lines, for the training loop to read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for example in examples:
        pair: dict[str, Any] = {"text": example.target}
        if example.prompt is not None:
            pair = {"input": example.prompt, "target": example.target}
        lines.append(json.dumps(pair, ensure_ascii=False))
    write_atomically(path, "\n".join(lines) + "\n")


def sample(examples: Sequence[Example], most: int) -> list[Example]:
    """At most ``most`` rows, the same ones every time, in their order."""
    return _some(examples, most)


def _some(rows: Sequence[Any], most: int) -> list[Any]:
    if len(rows) <= most:
        return list(rows)
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), most))]


def _key(example: Example) -> str:
    return example.target if example.prompt is None else example.prompt


def _sizes(part: Sequence[Example], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each pair with separator and end-of-text."""
    prompts = tokenizer.encode_batch([e.prompt or "" for e in part])
    targets = tokenizer.encode_batch([e.target for e in part])
    return [len(p) + len(t) + 2 for p, t in zip(prompts, targets, strict=True)]
