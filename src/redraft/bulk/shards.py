"""The files of results: one for each portion of rows, in Parquet or as JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from redraft.data.sources.parquet import opened
from redraft.errors import UserError
from redraft.files import write_atomically

Rows = Sequence[Mapping[str, Any]]


class Shards:
    """Writes files ``part-000000.jsonl``, ``part-000001.jsonl`` ... of a folder. Each is complete or absent.

    Attributes:
        suffix: ending of the files.
    """

    suffix: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, number: int) -> Path:
        """The file of a shard."""
        return self.folder / f"part-{number:06d}{self.suffix}"

    def write(self, number: int, rows: Rows) -> None:
        """Write a shard, in place of an earlier file.

        Raises:
            UserError: the disk is full, or the format can't hold the rows.
        """
        write_atomically(self.path(number), self.content(rows))

    def content(self, rows: Rows) -> bytes:
        """The content of a file.

        Raises:
            UserError: the format can't hold the rows.
        """
        raise NotImplementedError


class JsonLines(Shards):
    """One JSON object a line."""

    suffix = ".jsonl"

    def content(self, rows: Rows) -> bytes:
        return b"".join(_line(row) for row in rows)


class ParquetTables(Shards):
    """Tables of one schema: that of the data if they are Parquet, else that of the first shard.

    Args:
        source: the Parquet file whose columns the rows have, if the data are Parquet.
        columns: the new columns.
    """

    suffix = ".parquet"

    def __init__(self, folder: Path, source: str | None, columns: tuple[str, str, str]) -> None:
        super().__init__(folder)
        import pyarrow

        self.schema: Any = None
        written = sorted(folder.glob(f"part-*{self.suffix}"))
        if written:
            with opened(str(written[0])) as file:
                self.schema = file.schema_arrow
        elif source is not None:
            with opened(source) as file:
                new = zip(columns, (pyarrow.string(), pyarrow.int64(), pyarrow.string()), strict=True)
                self.schema = pyarrow.schema([*file.schema_arrow, *(pyarrow.field(*one) for one in new)])

    def content(self, rows: Rows) -> bytes:
        """The content of a file.

        Raises:
            UserError: a value or a column does not fit into the table.
        """
        import pyarrow
        import pyarrow.parquet

        try:
            if self.schema is None:
                names = dict.fromkeys(name for row in rows for name in row)
                first = pyarrow.Table.from_pylist([{name: row.get(name) for name in names} for row in rows])
                self.schema = first.schema
            known = set(self.schema.names)
            if unknown := next((name for row in rows for name in row if name not in known), None):
                raise UserError(
                    f"The rows have a column '{unknown}' that the rows before did not have.",
                    "A Parquet table has the same columns everywhere: use --format jsonl and another --out.",
                )
            table = pyarrow.Table.from_pylist(list(rows), schema=self.schema)
        except (pyarrow.ArrowException, TypeError, OverflowError) as error:
            raise UserError(
                f"A Parquet table can't hold these rows: {error}.", "Use --format jsonl and another --out."
            ) from None
        stream = io.BytesIO()
        pyarrow.parquet.write_table(table, stream)
        return stream.getvalue()


def _line(row: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(row, ensure_ascii=False)
    except TypeError:
        name = next(name for name, value in row.items() if not _is_json(value))
        raise UserError(
            f"Column '{name}' holds values that JSON has no form for ({type(row[name]).__name__}).",
            "Use --format parquet and another --out.",
        ) from None
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a surrogate pair, which only an escape can write
        return json.dumps(row).encode() + b"\n"


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True
