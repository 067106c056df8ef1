"""Statistics of a data set: rows, tasks, lengths, duplicates, contamination between splits, bad rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from redraft.data.columns import Columns
from redraft.data.contamination import Contamination, contamination
from redraft.data.examples import Doubtful, Example, Skipped, Splits
from redraft.data.tokenizer import Tokenizer

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
_CHUNK = 2048  # number of texts tokenised at once
_FEW = 50  # with fewer test rows, confidence intervals are wide
_SHOWN = 5  # number of rows that the text of a report names; the dataclass holds all of them


@dataclass(frozen=True)
class Lengths:
    """Quantiles of a length at ``QUANTILES``, and its sum."""

    quantiles: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, values: Iterable[int]) -> Lengths:
        """The quantiles and the sum of some lengths."""
        found = np.fromiter(values, dtype=np.int64)
        quantiles = np.quantile(found, QUANTILES, method="nearest") if len(found) else np.zeros(len(QUANTILES))
        return cls(tuple(int(value) for value in quantiles), int(found.sum()))


@dataclass(frozen=True)
class TaskReport:
    """One task of a mixture."""

    name: str
    rows: int
    distinct: int  # distinct rows: rows of small sets are repeated within one pass
    share: float  # share of all characters of the split


@dataclass(frozen=True)
class SplitReport:
    """One split. Keys of ``lengths`` are ``"prompt characters"``, ``"target tokens"``...; texts count as targets."""

    name: str
    rows: int
    lengths: dict[str, Lengths]
    duplicates: tuple[tuple[str, str], ...]  # (row, earlier row) with the same prompt and the same target
    same_input: int  # rows whose prompt occurred before with another target (several references)
    contamination: Contamination | None  # with training rows; None for these themselves
    skipped: tuple[Skipped, ...]
    tasks: tuple[TaskReport, ...] = ()  # if the source is a mixture
    unanswered: int = 0  # conversations whose last messages have no answer
    doubtful: tuple[Doubtful, ...] = ()  # rows that may be several


@dataclass(frozen=True)
class Report:
    """All splits of a source; ``str()`` gives the report as text."""

    columns: Columns
    recognised: bool
    splits: tuple[SplitReport, ...]
    split_by: str  # where the splits come from, in words

    def __str__(self) -> str:
        how = " (recognised by name)" if self.recognised else ""
        head = [f"columns: {self.columns}{how}", f"splits: {self.split_by}"]
        return "\n".join([*head, *(line for part in self.splits for line in _lines(part))])


def describe(splits: Splits, tokenizer: Tokenizer | None = None) -> Report:
    """Compute the statistics of all rows. With a tokenizer, lengths are also counted in tokens."""
    parts = []
    for name, examples in splits.items():
        duplicates, same_input = _duplicates(examples.rows)
        parts.append(
            SplitReport(
                name=name,
                rows=len(examples),
                lengths=_lengths(examples.rows, tokenizer),
                duplicates=duplicates,
                same_input=same_input,
                contamination=None if name == "train" else contamination(splits.train.rows, examples.rows),
                skipped=tuple(examples.skipped),
                tasks=_tasks(examples.rows),
                unanswered=examples.unanswered,
                doubtful=tuple(examples.doubtful),
            )
        )
    return Report(splits.train.columns, splits.train.recognised, tuple(parts), str(splits))


def _lengths(rows: Sequence[Example], tokenizer: Tokenizer | None) -> dict[str, Lengths]:
    texts = {"target": [example.target for example in rows]}
    if any(example.prompt is not None for example in rows):
        texts = {"prompt": [example.prompt or "" for example in rows]} | texts
    found = {f"{part} characters": Lengths.of(map(len, values)) for part, values in texts.items()}
    if tokenizer is not None:
        for part, values in texts.items():
            found[f"{part} tokens"] = Lengths.of(_token_counts(values, tokenizer))
    return found


def _token_counts(texts: Sequence[str], tokenizer: Tokenizer) -> Iterable[int]:
    for begin in range(0, len(texts), _CHUNK):
        yield from map(len, tokenizer.encode_batch(texts[begin : begin + _CHUNK]))


def _duplicates(rows: Sequence[Example]) -> tuple[tuple[tuple[str, str], ...], int]:
    seen: dict[tuple[str | None, str], str] = {}
    prompts: set[str] = set()
    found, same_input = [], 0
    for example in rows:
        before = seen.get((example.prompt, example.target))
        seen.setdefault((example.prompt, example.target), example.where)
        if before == example.where:  # a row that the mixture repeats
            continue
        if before is not None:
            found.append((example.where, before))
        elif example.prompt is not None:
            same_input += example.prompt in prompts
            prompts.add(example.prompt)
    return tuple(found), same_input


def _tasks(rows: Sequence[Example]) -> tuple[TaskReport, ...]:
    together: dict[str, list[Example]] = {}
    for example in rows:
        together.setdefault(example.task, []).append(example)
    if set(together) <= {""}:
        return ()
    sizes = {name: sum(len(e.prompt or "") + len(e.target) for e in part) for name, part in together.items()}
    total = max(1, sum(sizes.values()))
    return tuple(
        TaskReport(name, len(part), len({(e.where, e.prompt) for e in part}), sizes[name] / total)
        for name, part in together.items()
    )


def _lines(part: SplitReport) -> Iterable[str]:
    few = part.name == "test" and 0 < part.rows < _FEW
    yield f"{part.name}: {part.rows:,} rows" + (", too few for narrow confidence intervals" if few else "")
    for task in part.tasks:
        distinct = f", {task.distinct:,} distinct" if task.distinct < task.rows else ""
        yield f"  task {task.name}: {task.rows:,} rows{distinct}, {task.share:.0%} of the characters"
    if part.rows:
        for name, lengths in part.lengths.items():
            spread = " / ".join(f"{value:,}" for value in lengths.quantiles)
            yield f"  {name}: {spread} (min / 25 % / median / 75 % / 95 % / max), {lengths.total:,} in total"
    if part.duplicates:
        named = _some(part.duplicates)
        yield f"  exact duplicates: {len(part.duplicates):,} rows ({named})"
    if part.same_input:
        yield f"  same input with another target: {part.same_input:,} rows"
    if part.contamination is not None and part.contamination.total:
        found = part.contamination
        named = _some([(one.where, one.train) for one in found.examples], found.total)
        yield (
            f"  rows that also occur in train: {found.duplicates:,} duplicates, {found.same_input:,} with the same "
            f"input, {found.near:,} near duplicates ({named})"
        )
    if part.unanswered:
        yield f"  conversations that end with a message without an answer, which is left out: {part.unanswered:,}"
    for what, rows in (("bad rows left out", part.skipped), ("rows that may be several", part.doubtful)):
        if rows:
            yield f"  {what}: {len(rows):,}"
            yield from (f"    {row.where}: {row.reason}" for row in rows[:_SHOWN])
        if len(rows) > _SHOWN:
            yield f"    and {len(rows) - _SHOWN:,} more"


def _some(pairs: Sequence[tuple[str, str]], total: int = 0) -> str:
    total = total or len(pairs)
    named = "; ".join(f"{Path(where).name} = {Path(other).name}" for where, other in pairs[:_SHOWN])
    return named + (f"; and {total - _SHOWN:,} more" if total > _SHOWN else "")
