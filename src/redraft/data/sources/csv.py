"""CSV: tables separated by commas, semicolons or tabs. The first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from redraft.data.rows import EMPTY_LINE, Row, Source, lines, undecodable, without_final_empty_lines
from redraft.errors import UserError


class Csv(Source):
    """``.csv`` and ``.tsv`` (RFC 4180 quoting), plain or gzip. The separator is detected in the header line."""

    suffixes = (".csv", ".tsv")

    def read(self, path: str) -> Iterator[Row]:
        return without_final_empty_lines(_rows(path))


def _rows(path: str) -> Iterator[Row]:
    numbered = lines(path)
    first = next(numbered, None)
    if first is None:
        return
    records = _Records(first[1], numbered)
    _, header, problem = next(records)
    problem = problem or undecodable(first[1])
    if problem:
        raise UserError(f"{path}:1: {problem}.", "Write the column names in the first line.")
    if len(set(header)) < len(header):
        repeated = next(name for name in header if header.count(name) > 1)
        raise UserError(f"{path}:1: Two columns have the name '{repeated}'.", "Give each column a different name.")
    for line, fields, problem in records:
        if not problem and len(fields) != len(header):
            problem = f"{len(fields)} fields, but the header names {len(header)} columns" if fields else EMPTY_LINE
        problem = problem or next((found for field in fields if (found := undecodable(field))), "")
        yield Row({} if problem else dict(zip(header, fields, strict=True)), path, line, problem)


class _Records:
    """An iterator of (line number, fields, problem). Errors of the csv module become problems of the record."""

    def __init__(self, header: str, rest: Iterator[tuple[int, str]]) -> None:
        separator = "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","
        self.reader = csv.reader(self._lines(header, rest), delimiter=separator, strict=True)

    def _lines(self, header: str, rest: Iterator[tuple[int, str]]) -> Iterator[str]:
        yield header + "\n"
        for _, line in rest:
            yield line + "\n"

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> tuple[int, list[str], str]:
        line = self.reader.line_num + 1
        # The maximum field size is a setting of the whole process: raise it for one record, then restore it.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            return line, next(self.reader), ""
        except csv.Error as error:
            return line, [], f"not valid CSV: {error}"
        finally:
            csv.field_size_limit(limit)
