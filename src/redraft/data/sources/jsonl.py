"""JSON Lines: one object on each line. A ``.json`` file may hold one list of objects instead."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from redraft.data.rows import EMPTY_LINE, Row, Source, lines, undecodable, without_final_empty_lines
from redraft.errors import UserError


class Jsonl(Source):
    """``.jsonl``, ``.ndjson`` or ``.json``, plain or gzip. An empty line is a broken row, except at the end."""

    suffixes = (".jsonl", ".ndjson", ".json")

    def read(self, path: str) -> Iterator[Row]:
        if path.lower().removesuffix(".gz").endswith(".json"):
            found = [(number, line) for number, line in lines(path) if line.strip()]
            if found and found[0][1].lstrip().startswith("["):
                yield from _items(path, "\n".join(line for _, line in found))
                return
        yield from without_final_empty_lines(_row(path, number, line) for number, line in lines(path))


def _row(path: str, number: int, line: str) -> Row:
    if not line.strip():
        return Row({}, path, number, EMPTY_LINE)
    if problem := undecodable(line):
        return Row({}, path, number, problem)
    try:
        return _checked(path, number, json.loads(line))
    except json.JSONDecodeError as error:
        return Row({}, path, number, f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Row({}, path, number, f"not valid JSON: {error}")


def _items(path: str, text: str) -> Iterator[Row]:
    if problem := undecodable(text):
        raise UserError(f"{path}: {problem}.", "Save the file as UTF-8, or write one JSON object on each line.")
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not valid JSON: {error}.", "Write one object on each line, or one list of objects."
        ) from None
    yield from (_checked(path, number, item) for number, item in enumerate(items, 1))


def _checked(path: str, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(value, path, number)
    return Row({}, path, number, f"a JSON {type(value).__name__} instead of an object {{...}}")
