"""Tables as text: comma, semicolon or tab separated, the first line naming the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from redraft.data.rows import EMPTY_LINE, Row, Source, lines, undecodable, without_final_empty_lines
from redraft.errors import UserError


class Csv(Source):
    """``.csv`` and ``.tsv`` (RFC 4180 quoting), gzip or not. The separator is read off the header line."""

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
        raise UserError(f"{path}:1: {problem}.", "The first line must name the columns.")
    if len(set(header)) < len(header):
        raise UserError(f"{path}:1: two columns have the same name.", "Name each column once.")
    for line, fields, problem in records:
        if not problem and len(fields) != len(header):
            problem = f"{len(fields)} fields where the header names {len(header)}" if fields else EMPTY_LINE
        problem = problem or next((found for field in fields if (found := undecodable(field))), "")
        yield Row({} if problem else dict(zip(header, fields, strict=True)), path, line, problem)


class _Records:
    """Records with the line they begin on; the csv module's own errors become problems of the record."""

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
        # The largest field is a setting of the whole process: raise it for one record, then give it back.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            return line, next(self.reader), ""
        except csv.Error as error:
            return line, [], f"not valid CSV: {error}"
        finally:
            csv.field_size_limit(limit)
