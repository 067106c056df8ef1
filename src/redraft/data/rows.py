"""Rows as sources give them, and reading lines of text without losing or hiding a broken one."""

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
    """One row of a source, or the reason why it could not be read."""

    values: Mapping[str, Any]
    file: str
    line: int  # from 1; for formats without lines the number of the row
    problem: str = ""  # not empty: the row is broken and ``values`` must not be used
    task: str = ""  # of a source that mixes several

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


class Source:
    """One kind of input. A broken row is yielded with its ``problem``; a file that can't be read raises UserError."""

    suffixes: ClassVar[tuple[str, ...]] = ()
    holds_splits: ClassVar[bool] = False  # one path may stand for several splits: see ``splits``

    def matches(self, path: str) -> bool:
        """Is this path of my kind? By suffix, a final ``.gz`` aside."""
        return path.lower().removesuffix(".gz").endswith(self.suffixes) if self.suffixes else False

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        """Splits that the path holds within itself: name -> what to pass to ``read``. Usually none.

        ``data_root`` is where the names of further sources within it are looked for.
        """
        return {}

    def read(self, path: str) -> Iterator[Row]:
        raise NotImplementedError


def without_final_empty_lines(rows: Iterable[Row]) -> Iterator[Row]:
    """Empty lines at the end of a file are no rows; before that they are broken ones."""
    waiting: list[Row] = []
    for row in rows:
        if row.problem == EMPTY_LINE:
            waiting.append(row)
            continue
        yield from waiting
        waiting.clear()
        yield row


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Numbered lines (from 1) of a UTF-8 file, gzip or not, without their ends. A byte order mark is dropped.

    Bytes that are not UTF-8 come as lone surrogates; ``undecodable`` finds and names them.

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
        raise UserError(f"{path}: broken gzip data after line {number}: {error}.", "Get the file again.") from None
    except OSError as error:
        raise unreadable(path, error) from None


def undecodable(text: str) -> str:
    """Why a line from ``lines`` is not UTF-8, or an empty string if it is."""
    if text.isascii():
        return ""
    try:
        text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 (byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line)"
    return ""


def open_bytes(path: str) -> Any:
    return gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb")


def unreadable(path: str, error: OSError) -> UserError:
    """The error for a file that can't be opened, with the nearest name beside it."""
    if isinstance(error, FileNotFoundError):
        folder = Path(path).parent
        near = [child.name for child in folder.iterdir()] if folder.is_dir() else []
        hint = suggest(Path(path).name, near).partition("Known:")[0].strip()
        return UserError(f"'{path}' does not exist.", hint)
    return UserError(f"'{path}' can't be read: {error.strerror or error}.")


def _without_mark(raw: bytes, path: str) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: this is UTF-16 text.", "Save it as UTF-8.")
    return raw.removeprefix(b"\xef\xbb\xbf")
