"""The row and source types, and reading lines of text files so that every broken line is reported."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from redraft.errors import UserError, suggest

EMPTY_LINE = "empty line"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source, or the reason why it can't be read."""

    values: Mapping[str, Any]
    file: str
    line: int  # from 1; the number of the row in formats without lines
    problem: str = ""  # not empty: the row is broken, and ``values`` must not be used
    task: str = ""  # name of the task, if the source mixes several

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


def without_final_empty_lines(rows: Iterable[Row]) -> Iterator[Row]:
    """Drop empty lines at the end of a file. Other empty lines stay as broken rows."""
    waiting: list[Row] = []
    for row in rows:
        if row.problem == EMPTY_LINE:
            waiting.append(row)
            continue
        yield from waiting
        waiting.clear()
        yield row


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 file, plain or gzip, without line ends. A byte order mark is dropped.

    Bytes that are not UTF-8 become lone surrogates; ``undecodable`` reports them.

    Raises:
        UserError: the file is missing, a folder, unreadable, truncated gzip, or UTF-16.
    """
    number = 0
    try:
        with open_bytes(path) as stream:
            for number, raw in enumerate(stream, 1):
                if number == 1:
                    raw = _without_mark(raw, path)
                yield number, raw.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path}: The gzip data is broken after line {number}: {error}.", "Copy or download the file again."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None


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
    """Open a file for reading bytes; ``.gz`` is decompressed."""
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def unreadable(path: str, error: OSError) -> UserError:
    """The error for a file that can't be opened. For a missing file it suggests the nearest name in its folder."""
    if isinstance(error, FileNotFoundError):
        folder = Path(path).parent
        near = [child.name for child in folder.iterdir()] if folder.is_dir() else []
        hint = suggest(Path(path).name, near).partition("Known:")[0].strip()
        return UserError(f"File '{path}' does not exist.", hint or "Check the path.")
    return UserError(f"File '{path}' can't be read: {error.strerror or error}.", "Check its permissions.")


def _without_mark(raw: bytes, path: str) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"File '{path}' is UTF-16 text.", "Save it as UTF-8.")
    return raw.removeprefix(b"\xef\xbb\xbf")
