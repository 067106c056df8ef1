"""The data of a study: rows for training, validation and test, and the task they are for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redraft.compare.study import Study
from redraft.data.chat import example_ids
from redraft.data.contamination import Contamination, contamination
from redraft.data.examples import Columns, Example, load
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.result_cache import digest
from redraft.files import write_atomically
from redraft.tasks import Choice, infer_task

TASK_ROWS = 5000  # rows from which the task is inferred
NEW_TOKENS = 64  # of a continuation of plain text
WINDOW = 256  # tokens of a window of plain text
LONGEST = 512  # longer rows are left out unless the study sets a length, in tokens


@dataclass
class Dataset:
    """The rows of a study, and the task they are for."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    paired: bool
    choice: Choice
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)  # which rows were left out, and why
    contamination: Contamination | None = None  # of the test rows by training rows

    @property
    def hash(self) -> str:
        """Hash of all rows in order."""
        parts = (self.train, self.validation, self.test)
        return digest([[(e.prompt, e.target) for e in part] for part in parts])


def load_dataset(study: Study) -> Dataset:
    """Read and split the data, and infer the task.

    Raises:
        UserError: the data can't be read, or a split has fewer than two rows.
    """
    columns = Columns(text=study.text, input=study.input, target=study.target)
    splits = load(
        study.data,
        columns if str(columns) else None,
        data_root=study.data_root or None,
        skip_bad_rows=study.skip_bad_rows,
    )
    for name, part in splits.items():
        if len(part) < 2:
            raise UserError(
                f"'{study.data}' has {len(part)} {name} rows; a comparison needs at least 2 training, 2 validation and "
                "2 test rows, and some hundred test rows for a verdict.",
                "Give more rows.",
            )
    train, validation, test = splits.train.rows, splits.validation.rows, splits.test.rows
    paired = train[0].prompt is not None
    skipped = sum(len(part.skipped) for _, part in splits.items())
    notes = [f"Rows of training, validation and test: {splits}."]
    notes += [f"{skipped} rows could not be read and were left out."] if skipped else []
    doubtful = [row for _, part in splits.items() for row in part.doubtful]
    notes += [f"{len(doubtful)} rows may be several: in {doubtful[0].where}, {doubtful[0].reason}."] if doubtful else []
    chosen = splits.train.columns
    return Dataset(
        train=train,
        validation=validation,
        test=test,
        paired=paired,
        choice=infer_task(train[:TASK_ROWS], study.task, study.metric_options),
        columns={k: v for k, v in vars(chosen).items() if v},
        notes=notes,
        contamination=contamination(train, test).brief(),
    )


def fit_length(dataset: Dataset, limits: Sequence[tuple[Tokenizer, int]]) -> tuple[Dataset, list[int]]:
    """Leave out pairs that are longer than the limit of a tokenizer, and note how many.

    Args:
        limits: tokenizers, each with the longest row in its tokens; 0: the longest there is, at most ``LONGEST``.
    Returns:
        the remaining data, and the length for each tokenizer.
    Raises:
        UserError: no row of a split fits.
    """
    if not dataset.paired:
        return dataset, [limit or WINDOW for _, limit in limits]
    parts = (dataset.train, dataset.validation, dataset.test)
    sizes = [[_sizes(part, tokenizer) for part in parts] for tokenizer, _ in limits]
    lengths = [
        min(limit or LONGEST, max(max(size) for size in own)) for own, (_, limit) in zip(sizes, limits, strict=True)
    ]
    bound = " or ".join(map(str, dict.fromkeys(lengths)))
    notes, kept = list(dataset.notes), []
    for number, (name, part) in enumerate(zip(("training", "validation", "test"), parts, strict=True)):
        own = [each[number] for each in sizes]
        fits = [all(size[i] <= length for size, length in zip(own, lengths, strict=True)) for i in range(len(part))]
        left = [e for e, fit in zip(part, fits, strict=True) if fit]
        if not left:
            raise UserError(f"No {name} row fits into {bound} tokens.", "Raise --length.")
        if len(left) < len(part):
            notes.append(
                f"{len(part) - len(left)} of {len(part)} {name} rows are longer than {bound} tokens and were left out."
            )
        kept.append(left)
    train, validation, test = kept
    return replace(dataset, train=train, validation=validation, test=test, notes=notes), lengths


def answer_length(dataset: Dataset, tokenizer: Tokenizer, longest: int) -> int:
    """Limit of new tokens: 10 % more than the 99.9th percentile of training targets, end-of-text included."""
    if not dataset.paired:
        return NEW_TOKENS
    sizes = sorted(len(ids) + 1 for ids in tokenizer.encode_batch([e.target for e in dataset.train[:20_000]]))
    return max(2, min(longest, int(1.1 * sizes[int(0.999 * (len(sizes) - 1))]) + 1))


def write_rows(examples: Sequence[Example], path: Path) -> None:
    """Write rows as JSON lines for the training loop."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for example in examples:
        row: dict[str, Any] = {"text": example.target}
        if example.turns:  # only the last message is a target: the others are rows of their own
            before = [{"role": role, "content": content, "weight": 0} for role, content in example.turns]
            row = {"messages": [*before, {"role": "assistant", "content": example.target}]}
        elif example.prompt is not None:
            row = {"input": example.prompt, "target": example.target}
        lines.append(json.dumps(row, ensure_ascii=False))
    write_atomically(path, "\n".join(lines) + "\n")


def _sizes(part: Sequence[Example], tokenizer: Tokenizer) -> list[int]:
    """Tokens of each pair, separator and end-of-text included."""
    return [len(prompt) + len(target) for prompt, target in zip(*example_ids(part, tokenizer), strict=True)]
