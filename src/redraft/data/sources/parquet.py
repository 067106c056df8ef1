"""Parquet: tables in ``.parquet`` files."""

from __future__ import annotations

from collections.abc import Iterator

from redraft.data.rows import Row, Source, check_names, check_regular, unreadable
from redraft.errors import UserError


class Parquet(Source):
    """``.parquet``, read in batches of rows."""

    suffixes = (".parquet",)

    def read(self, path: str) -> Iterator[Row]:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise UserError(
                f"Reading '{path}' needs the pyarrow package.", "Install it: pip install 'redraft[train]'"
            ) from None
        done = 0
        check_regular(path)
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                check_names(file.schema_arrow.names, path)
                for batch in file.iter_batches(batch_size=1024):
                    for values in batch.to_pylist():
                        done += 1
                        yield Row(values, path, done)
        except pyarrow.ArrowException as error:
            raise UserError(
                f"File '{path}' is not a valid Parquet file: {error}.", "Copy or download the file again."
            ) from None
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}: A text after row {done} is not valid UTF-8: {error.reason}.", "Write the table with UTF-8."
            ) from None
        except OSError as error:
            raise unreadable(path, error) from None
