"""Generation for a portion of rows: the one function for a single machine and for the workers of Ray.

A text depends on its row, the settings and its seed, which is that of the settings plus the number of the row in the
whole source. It does not depend on batches, shards, restarts or machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from redraft.data.columns import BadRow, Columns, prompt_reader
from redraft.data.rows import Row
from redraft.data.stream import Position, read_from
from redraft.errors import UserError
from redraft.generation.prompts import Prompt, answerable_prompt_ids, check_length
from redraft.generation.start import start_prompts
from redraft.loading import load, pair
from redraft.settings import Dtype, Settings
from redraft.types import Generation

OnBatch = Callable[[int, int], None]  # receives the rows and the new tokens of each finished batch


@dataclass(frozen=True)
class Portion:
    """Consecutive rows of a source: those of one shard."""

    number: int  # of the shard
    first: int  # number of the first row in the whole source, from 0
    rows: tuple[Row, ...]
    end: Position  # behind the last row


@dataclass(frozen=True)
class Answered:
    """The results of a portion."""

    number: int
    read: int  # rows of the source
    rows: list[dict[str, Any]]  # the good ones, in order, with the new columns
    bad: list[dict[str, Any]]  # file, line and reason of each row that is left out
    doubtful: list[dict[str, Any]]  # the same of each row that was used, and may be several rows
    tokens: int  # new tokens of all texts
    end: Position


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. It can be sent to another machine."""

    model: str
    given: Mapping[str, Any]  # settings of generation, seed included
    prompt: Columns  # from ``choose_prompt``
    columns: tuple[str, str, str]  # the new columns: text, number of tokens, why the text ends
    batch_size: int
    device: str = "auto"
    dtype: Dtype = "auto"
    adapter: str | None = None
    drafter: str | None = None


def portions(files: Sequence[str], size: int, number: int, at: Position) -> Iterator[Portion]:
    """The rows of files in portions of ``size``, the last one smaller.

    Args:
        number, at: of the first portion, and where it begins. All portions before it have ``size`` rows.
    Raises:
        UserError: a file can't be read at all.
    """
    rows = read_from(files, at)
    while part := list(islice(rows, size)):
        yield Portion(number, number * size, tuple(row for row, _ in part), part[-1][1])
        number += 1


class Worker:
    """A loaded model that answers portions.

    Raises:
        UserError: the model can't be loaded, or does not support the settings.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = load(job.model, job.device, job.dtype, adapter=job.adapter)
        sampler = pair(self.model, job.drafter, job.given.get("sampler"))
        self.settings: Settings = self.model.settings(**{**job.given, "sampler": sampler})

    def answer(self, portion: Portion, on_batch: OnBatch | None = None) -> Answered:
        """Generate for all rows of a portion, in batches of prompts of similar length.

        Raises:
            UserError: a row already has one of the new columns, or as ``generation.start.start``.
        """
        heads: dict[int, list[int]] = {}
        bad: list[dict[str, Any]] = []
        read = prompt_reader(self.job.prompt)
        for number, row in enumerate(portion.rows):
            if clash := next((name for name in self.job.columns if name in row.values), None):
                what = f"{row.where}: The row has a column '{clash}' already."
                raise UserError(what, "Give the new columns another name with --column.")
            try:
                heads[number] = self._head(row, read)
            except BadRow as error:
                bad.append(_noted(row, str(error)))
        found = self._texts(heads, portion.first, on_batch)
        rows = [{**portion.rows[number].values, **self._new(found[number])} for number in heads]
        tokens = sum(len(one.ids) for one in found.values())
        doubtful = [_noted(row, row.doubt) for row in portion.rows if row.doubt]
        return Answered(portion.number, len(portion.rows), rows, bad, doubtful, tokens, portion.end)

    def _head(self, row: Row, read: Callable[[Mapping[str, Any]], Prompt]) -> list[int]:
        """The token ids of a row's prompt.

        Raises:
            BadRow: the row is broken, or its prompt can't be answered.
        """
        if row.problem:
            raise BadRow(row.problem)
        try:
            head = answerable_prompt_ids(self.model, read(row.values))
            check_length(self.model, len(head) + self.settings.max_new_tokens, prompt=len(head))
        except UserError as error:
            raise BadRow(error.what) from None
        return head

    def _texts(self, heads: Mapping[int, list[int]], first: int, on_batch: OnBatch | None) -> dict[int, Generation]:
        """The generation of each prompt, by the number of its row in the portion."""
        order = sorted(heads, key=lambda number: len(heads[number]))
        found: dict[int, Generation] = {}
        for begin in range(0, len(order), self.job.batch_size):
            part = order[begin : begin + self.job.batch_size]
            seeds = [self.settings.seed + first + number for number in part]
            run = start_prompts(self.model, [heads[number] for number in part], self.settings, seeds).begin()
            for _ in run:
                pass
            results = run.results()
            found |= zip(part, results, strict=True)
            if on_batch is not None:
                on_batch(len(part), sum(len(one.ids) for one in results))
        return found

    def _new(self, found: Generation) -> dict[str, Any]:
        """The new columns of a row."""
        return dict(zip(self.job.columns, (found.text, len(found.ids), found.finish), strict=True))


def _noted(row: Row, reason: str) -> dict[str, Any]:
    return {"file": row.file, "line": row.line, "reason": reason}
