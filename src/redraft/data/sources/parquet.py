"""Parquet: tables in ``.parquet`` files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from redraft.data.rows import Row, Source, check_names, check_regular, unreadable
from redraft.errors import UserError

_BATCH = 1024  # rows decoded at once


class Parquet(Source):
    """``.parquet``, read in batches of rows."""

    suffixes = (".parquet",)

    def read(self, path: str) -> Iterator[Row]:
        return self.read_from(path, 0)

    def read_from(self, path: str, row: int) -> Iterator[Row]:
        """The rows of a file without its first ``row`` ones. Row groups before these are not decoded.

        Raises:
            UserError: the file can't be read.
        """
        done = 0
        with opened(path, lambda: done) as file:
            check_names(file.schema_arrow.names, path)
            groups = [file.metadata.row_group(number).num_rows for number in range(file.metadata.num_row_groups)]
            first = 0
            while first < len(groups) and done + groups[first] <= row:
                done += groups[first]
                first += 1
            for batch in file.iter_batches(batch_size=_BATCH, row_groups=list(range(first, len(groups)))):
                skipped = min(max(row - done, 0), batch.num_rows)
                done += skipped
                for values in batch.slice(skipped).to_pylist():
                    done += 1
                    yield Row(values, path, done)

    def count(self, path: str) -> int | None:
        with opened(path) as file:
            return int(file.metadata.num_rows)


@contextmanager
def opened(path: str, rows: Callable[[], int] = lambda: 0) -> Iterator[Any]:
    """A Parquet file, as pyarrow's ``ParquetFile``; the errors of reading it in words.

    Args:
        rows: gives the number of rows that were read so far, to tell where a text is broken.
    Raises:
        UserError: pyarrow is missing, or the file can't be read.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(
            f"Reading '{path}' needs the pyarrow package.", "Install it: pip install 'redraft[train]'"
        ) from None
    check_regular(path)
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise UserError(
            f"File '{path}' is not a valid Parquet file: {error}.", "Copy or download the file again."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: A text after row {rows()} is not valid UTF-8: {error.reason}.", "Write the table with UTF-8."
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
