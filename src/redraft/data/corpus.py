"""A corpus that is read from its files again in every pass, and never held in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from redraft.data import stream
from redraft.data.columns import BadRow, Columns
from redraft.data.examples import (
    Example,
    Examples,
    RowReader,
    Splits,
    bad_row,
    shares_of,
    split_of,
)
from redraft.data.locate import SPLITS, resolve
from redraft.data.stream import Position
from redraft.errors import UserError

_COUNTED = (
    8000  # rows that are read to tell a small corpus, which holds out more rows (``shares_of``), from a large one
)
_FILES = 64  # files from which a sample is taken


@dataclass(frozen=True)
class Read:
    """The examples of one row."""

    examples: Sequence[Example]
    skipped: str  # file, line and reason, if the row is bad and was left out
    doubt: str  # the same, if the row was read and may be several rows
    end: Position  # behind the row


@dataclass(frozen=True)
class Corpus:
    """The training rows of a source: those of its training files, or the share of all rows that a hash of the input
    chooses, by the same rule as elsewhere (``data.examples.split``).

    Attributes:
        shares: of training, validation and test rows in ``files``; None: all rows are for training.
        held_out: files with validation rows; empty: they are in ``files``.
    """

    files: tuple[str, ...]
    columns: Columns
    recognised: bool
    skip_bad_rows: bool
    shares: tuple[float, float, float] | None = None
    held_out: tuple[str, ...] = ()

    @classmethod
    def open(
        cls,
        source: str | Mapping[str, str],
        columns: Columns | None = None,
        *,
        data_root: str | None = None,
        fractions: tuple[float, float, float] | None = None,
        skip_bad_rows: bool = False,
    ) -> Corpus:
        """Find the files of a source, and choose columns and shares. At most 8,000 rows are read.

        Args:
            source, fractions: as for ``data.examples.load``.
        Raises:
            UserError: the source can't be found or read, has no training rows, or a column does not exist.
        """
        found = resolve(source, data_root)
        files = found.get("") or found.get("train")
        if not files:
            raise UserError(f"'{source}' has no training rows.", "Name a source with training rows.")
        whole = cls(tuple(files), columns or Columns(), columns in (None, Columns()), skip_bad_rows)
        reads = RowReader(columns)
        count = sum(len(one.examples) for one in islice(whole.rows(range(len(files)), Position(), reads), _COUNTED))
        if reads.chosen is None:
            raise UserError(f"'{', '.join(files)}' holds no rows.", "Give a file with at least one good row.")
        train, *rest = fractions or shares_of(count)
        validation, test = (0.0 if name in found else share for name, share in zip(SPLITS[1:], rest, strict=True))
        shares = (train, validation, test) if validation or test else None
        return replace(whole, columns=reads.chosen, shares=shares, held_out=tuple(found.get("validation", ())))

    def rows(self, order: Sequence[int], start: Position, reads: RowReader | None = None) -> Iterator[Read]:
        """The training rows, in an order of the files. Rows that are held out have no examples.

        Args:
            order: numbers of the files. ``Position.file`` counts in this order.
            reads: receives the columns that were chosen.
        Raises:
            UserError: a file can't be read, or a row is bad and bad rows are not skipped.
        """
        reads = reads or RowReader(self.columns)
        for row, end in stream.read_from([self.files[number] for number in order], start):
            try:
                found = reads.examples(row)
            except BadRow as error:
                if not self.skip_bad_rows:
                    raise bad_row(row, str(error)) from None
                yield Read((), f"{row.where}: {error}", "", end)
                continue
            shares = self.shares
            kept = found if shares is None else [one for one in found if split_of(one, shares) == "train"]
            yield Read(kept, "", f"{row.where}: {row.doubt}" if row.doubt else "", end)

    def sample(self, characters: int, validation_rows: int) -> Splits:
        """Training rows from the beginnings of up to 64 files, and the first validation rows, both in memory.

        Args:
            characters: of the training texts, about.
            validation_rows: the most validation rows.
        Raises:
            UserError: as ``rows``, or no training row is found.
        """
        chosen = self.files[:: max(1, len(self.files) // _FILES)][:_FILES]
        train: list[Example] = []
        for file in chosen:
            left = characters // len(chosen)
            for example in replace(self, files=(file,)).examples():
                train.append(example)
                left -= len(example.prompt or "") + len(example.target)
                if left <= 0:
                    break
        if not train:
            raise UserError(f"'{', '.join(chosen)}' holds no training rows.", "Give more rows.")
        examples = Examples(train, self.columns, self.recognised)
        held_out = examples.replace(list(islice(self._validation(), validation_rows)))
        return Splits(examples, held_out, examples.replace([]), self.shares)

    def examples(self) -> Iterator[Example]:
        """The training examples, once.

        Raises:
            UserError: as ``rows``.
        """
        for one in self.rows(range(len(self.files)), Position()):
            yield from one.examples

    def _validation(self) -> Iterator[Example]:
        """The validation examples."""
        shares = self.shares
        if self.held_out:
            yield from replace(self, files=self.held_out, shares=None).examples()
        elif shares is not None and shares[1]:
            whole = replace(self, shares=None).examples()
            yield from (example for example in whole if split_of(example, shares) == "validation")

    def digest(self) -> str:
        """What tells whether a resumed run reads the same files in the same way (``stream.marks``)."""
        known: list[Any] = [stream.marks(self.files), str(self.columns), self.shares]
        return hashlib.sha256(json.dumps(known).encode()).hexdigest()
