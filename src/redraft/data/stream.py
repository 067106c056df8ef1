"""Reading the rows of many files one after the other, from any position on, without holding them in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from redraft.data.locate import SPLITS, data_files, source_kind
from redraft.data.rows import Row
from redraft.errors import UserError
from redraft.files import file_marks


@dataclass(frozen=True)
class Position:
    """Where a reader of files stands: the rows before it have been read."""

    file: int = 0  # number of the file
    row: int = 0  # of this file, broken rows counted


def read_from(files: Sequence[str], start: Position) -> Iterator[tuple[Row, Position]]:
    """The rows of files, each with the position behind it. A row that is broken has its ``problem``.

    Raises:
        UserError: a file can't be read at all.
    """
    for number in range(start.file, len(files)):
        first = start.row if number == start.file else 0
        for row, values in enumerate(source_kind(files[number]).read_from(files[number], first), first + 1):
            yield values, Position(number, row)


def in_order(found: Mapping[str, Sequence[str]]) -> list[str]:
    """All files of a source (``locate.resolve``): those of one split after the other."""
    return [file for name in ("", *SPLITS) for file in found.get(name, ())]


def count(files: Sequence[str]) -> int | None:
    """The number of rows of files, if it is known without reading them.

    Raises:
        UserError: a file can't be read at all.
    """
    total = 0
    for file in files:
        rows = source_kind(file).count(file)
        if rows is None:
            return None
        total += rows
    return total


def marks(files: Sequence[str]) -> list[list[str]]:
    """What tells whether files are the same as in an earlier run, wherever they are now (``files.file_marks``).

    A source that is not a file (``hub:owner/name``) is taken for the same if its name is.
    """
    found = []
    for file in files:
        path = Path(file)
        if path.is_file():
            members = [(path.parent, path)]
        elif path.is_dir():
            members = [(path, Path(member)) for member in data_files(file)]
        else:
            members = []
            found.append([file])
        for folder, member in members:
            found += [[str(part) for part in mark] for mark in file_marks(folder, [member])]
    return found


def first_good(files: Sequence[str]) -> Row:
    """The first row that is not broken.

    Raises:
        UserError: there is none, or a file can't be read.
    """
    problem = ""
    for row, _ in read_from(files, Position()):
        if not row.problem:
            return row
        problem = problem or f" (the first: {row.where}: {row.problem})"
    raise UserError(f"'{', '.join(files)}' holds no good row{problem}.", "Give a file with at least one good row.")
