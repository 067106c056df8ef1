"""The row and source types, and reading lines of text files so that every broken line is reported."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from redraft.errors import UserError, suggest

EMPTY_LINE = "empty line"
LONGEST_LINE = 1 << 28  # bytes; a longer line is no row, but a damaged file or one made to fill the memory
_MOST_EMPTY = 1_000_000  # empty lines in a row; more of them are no data either


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, or the reason why it can't be read."""

    values: Mapping[str, Any]
    file: str
    line: int  # from 1; the number of the row in formats without lines
    problem: str = ""  # not empty: the row is broken, and ``values`` must not be used
    task: str = ""  # name of the task, if the source mixes several
    doubt: str = ""  # not empty: why the row, which was read, may be several rows

    @property
    def where(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"


class Source:
    """Base class of the kinds of input. One file in ``data/sources`` defines one kind.

    A broken row is yielded with its ``problem``. A file that can't be read raises ``UserError``.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    holds_splits: ClassVar[bool] = False  # one path may hold several splits: see ``splits``

    def matches(self, path: str) -> bool:
        """Is this path of this kind? Decided by the suffix; a final ``.gz`` is ignored."""
        return path.lower().removesuffix(".gz").endswith(self.suffixes) if self.suffixes else False

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        """Splits that this one path holds: name -> path for ``read``. Most kinds have none.

        Args:
            data_root: the folder in which further sources that the file names are looked up.
        """
        return {}

    def read(self, path: str) -> Iterator[Row]:
        """The rows of a file.

        Raises:
            UserError: the file can't be read at all.
        """
        raise NotImplementedError

    def read_from(self, path: str, row: int) -> Iterator[Row]:
        """The rows of a file without its first ``row`` ones, broken rows counted.

        Raises:
            UserError: the file can't be read at all.
        """
        return islice(self.read(path), row, None)

    def count(self, path: str) -> int | None:
        """The number of rows of a file, if it is known without reading them.

        Raises:
            UserError: the file can't be read at all.
        """
        return None


def without_final_empty_lines(rows: Iterable[Row]) -> Iterator[Row]:
    """Drop empty lines at the end of a file. Other empty lines are broken rows: one for each run of them."""
    first: Row | None = None
    count = 0
    for row in rows:
        if row.problem == EMPTY_LINE:
            first, count = first or row, count + 1
            continue
        if first is not None:
            yield Row({}, first.file, first.line, EMPTY_LINE if count == 1 else f"{count} empty lines")
            first, count = None, 0
        yield row


def lines(path: str, longest: int = LONGEST_LINE) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 file, plain or gzip, without line ends. A byte order mark is dropped.

    Bytes that are not UTF-8 become lone surrogates; ``undecodable`` reports them.

    Args:
        longest: the most bytes of a line.
    Raises:
        UserError: the file is missing, a folder, a pipe or device, unreadable, truncated gzip, UTF-16, or has a line
            longer than ``longest`` or a million empty lines in a row.
    """
    number, filled = 0, 0  # number of the last line, and of the last one that is not empty
    try:
        with open_bytes(path) as stream:
            while raw := stream.readline(longest + 1):
                number += 1
                if len(raw) > longest:
                    raise UserError(
                        f"{path}:{number}: The line is longer than {longest >> 20} MiB.",
                        "Write one row on each line, as JSON Lines.",
                    )
                if number == 1:
                    raw = _without_mark(raw, path)
                if raw not in (b"\n", b"\r\n"):
                    filled = number
                elif number - filled > _MOST_EMPTY:
                    what = f"{path}:{filled + 1}: More than {_MOST_EMPTY:,} empty lines follow each other."
                    raise UserError(what, "Remove them.")
                yield number, raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: The gzip data is broken after line {number}: {error}.", "Copy or download the file again."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


def check_names(names: Iterable[str], where: str) -> None:
    """Check the names of a table's columns.

    Raises:
        UserError: two columns have the same name, so that one of them would be lost.
    """
    if repeated := first_repeated(names):
        raise UserError(f"{where}: Two columns have the name '{repeated}'.", "Give each column a different name.")


def first_repeated(names: Iterable[str]) -> str | None:
    """The first name that occurs for the second time; None if all are different."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def undecodable(text: str) -> str:
    """The reason why a line from ``lines`` is not UTF-8; an empty string if it is."""
    if text.isascii():
        return ""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line)"
    return ""


def open_bytes(path: str) -> Any:
    """Open a file for reading bytes; ``.gz`` is decompressed.

    Raises:
        UserError: a pipe or a device. Data are read more than once, and reading from a pipe waits without end.
    """
    check_regular(path)
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def check_regular(path: str) -> None:
    """Check that a path that exists is a file or folder.

    Raises:
        UserError: it is a pipe, a socket or a device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return  # opening it tells why
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise UserError(
            f"'{path}' is a pipe or a device, and data are read more than once.", "Write the rows to a file first."
        )


def unreadable(path: str, error: OSError) -> UserError:
    """The error for a file that can't be opened. For a missing file it suggests the nearest name in its folder."""
    if isinstance(error, FileNotFoundError):
        if broken := broken_link(path):
            return broken
        folder = Path(path).parent
        near = [child.name for child in folder.iterdir()] if os.path.isdir(folder) else []
        hint = suggest(Path(path).name, near).partition("Known:")[0].strip()
        return UserError(f"File '{path}' does not exist.", hint or "Check the path.")
    return UserError(f"File '{path}' can't be read: {error.strerror or error}.", "Check its permissions.")


def broken_link(path: str) -> UserError | None:
    """The error for a symbolic link to a file that does not exist; None if the path is no such link."""
    if not os.path.islink(path) or os.path.exists(path):
        return None
    return UserError(
        f"'{path}' is a link to '{os.readlink(path)}', which does not exist.",
        "Download the file again, or mend the link.",
    )


def _without_mark(raw: bytes, path: str) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"File '{path}' is UTF-16 text.", "Save it as UTF-8.")
    return raw.removeprefix(b"\xef\xbb\xbf")
