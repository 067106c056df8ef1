"""CSV: tables separated by commas, semicolons or tabs. The first line names the columns."""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from itertools import chain
from typing import Literal

from redraft.data.rows import EMPTY_LINE, Row, Source, check_names, lines, undecodable, without_final_empty_lines
from redraft.errors import UserError

_LONGEST = 10_000  # lines of a record: a quoted field that is longer was never closed
_GLUED = 8  # further lines that look like rows of their own: from here on they are, and not one long text


class Csv(Source):
    """``.csv`` with RFC 4180 quoting, and ``.tsv`` without quoting; plain or gzip.

    The separator of a ``.csv`` is the one of its header line (comma, semicolon or tab). A ``.tsv`` is separated by
    tabs, and a quotation mark in it is a character like any other: a line is a row. A table with tabs and quoted fields
    is read under the name ``.csv``.

    A quote that is not closed breaks its own row alone: reading goes on in the next line. Two stray quotes make one
    quoted field of the lines between them. If each of these lines has as many separators as the header, they are read
    as rows where there are many of them. Few may also be an honest text of several lines: the row is read and is in
    ``doubt``. A table of one column has no separators, so nothing can be told there.
    """

    suffixes = (".csv", ".tsv")

    def read(self, path: str) -> Iterator[Row]:
        return without_final_empty_lines(_rows(path))


def _rows(path: str) -> Iterator[Row]:
    numbered = lines(path)
    first = next(numbered, None)
    if first is None:
        return
    quoted = not path.lower().removesuffix(".gz").endswith(".tsv")
    records = _Records(numbered, _separator(first[1]) if quoted else "\t", quoted)
    header, problem, rest = records.parse(first)
    problem = problem or undecodable(first[1])
    if problem or rest:
        problem = problem or "the line with the names of the columns has a quote that is not closed"
        raise UserError(f"{path}:1: {problem}.", "Write the column names in the first line.")
    check_names(header, f"{path}:1")
    records.columns = len(header)
    for line, fields, problem, doubt in records:
        problem = problem or next((found for field in fields if (found := undecodable(field))), "")
        yield Row({} if problem else dict(zip(header, fields, strict=True)), path, line, problem, doubt=doubt)


def _separator(header: str) -> str:
    return "\t" if "\t" in header else ";" if ";" in header and "," not in header else ","


class _Records:
    """An iterator of (line number, fields, problem, doubt). Errors of the csv module become problems of the record.

    Attributes:
        columns: number of fields of a good record; 0: any.
    """

    def __init__(self, numbered: Iterator[tuple[int, str]], separator: str, quoted: bool) -> None:
        self.numbered, self.separator, self.columns = numbered, separator, 0
        self.quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
        self.waiting: deque[tuple[int, str]] = deque()  # lines that were read as part of a broken record

    def __iter__(self) -> _Records:
        return self

    def __next__(self) -> tuple[int, list[str], str, str]:
        line = self._next_line()
        if line is None:
            raise StopIteration
        fields, problem, rest = self.parse(line)
        if not problem and not fields:
            problem = EMPTY_LINE
        if not problem and self.columns and len(fields) != self.columns:
            problem = f"{len(fields)} fields, but the header names {self.columns} columns"
            if self.quoting == csv.QUOTE_NONE:
                problem += " (a .tsv has no quoting; a table with quoted fields is read under the name .csv)"
        doubt = ""
        if not problem and self._looks_like_rows(line, rest):
            open_over = f"a quote is open over {len(rest) + 1} lines, each of which"
            if len(rest) < _GLUED:
                doubt = f"{open_over} could be a row of its own"
            else:
                problem = f"{open_over} is a row of its own"
        if problem:  # only the first line is lost: the others are read again
            self.waiting.extendleft(reversed(rest))
        return line[0], fields, problem, doubt

    def parse(self, line: tuple[int, str]) -> tuple[list[str], str, list[tuple[int, str]]]:
        """The record that begins in a line: its fields, what is wrong with it, and its further lines."""
        rest: list[tuple[int, str]] = []
        unclosed = False

        def following() -> Iterator[str]:
            nonlocal unclosed
            while len(rest) < _LONGEST and (found := self._next_line()) is not None:
                rest.append(found)
                yield found[1] + "\n"
            unclosed = True

        # The maximum field size is a setting of the whole process: raise it for one record, then restore it.
        limit = csv.field_size_limit(2**31 - 1)
        try:
            fields = next(self._reader(chain([line[1] + "\n"], following())))
            return fields, "", rest
        except csv.Error as error:
            why = "a quote is not closed" if unclosed else str(error)
            return [], f"not valid CSV: {why}", rest
        finally:
            csv.field_size_limit(limit)

    def _looks_like_rows(self, line: tuple[int, str], rest: list[tuple[int, str]]) -> bool:
        """Has each line of a record of several lines as many separators as the header?"""
        if not rest or self.columns < 2:
            return False
        return all(text.count(self.separator) == self.columns - 1 for _, text in (line, *rest))

    def _reader(self, text: Iterator[str]) -> Iterator[list[str]]:
        return csv.reader(text, delimiter=self.separator, strict=True, quoting=self.quoting)

    def _next_line(self) -> tuple[int, str] | None:
        return self.waiting.popleft() if self.waiting else next(self.numbered, None)
