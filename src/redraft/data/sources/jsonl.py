"""JSON Lines: one object on each line. A ``.json`` file may hold one list of objects instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from redraft.data.rows import (
    EMPTY_LINE,
    Row,
    Source,
    first_repeated,
    lines,
    undecodable,
    without_final_empty_lines,
)
from redraft.errors import UserError

_WHOLE = 1 << 29  # bytes of a file that is one JSON value
_SPACE = re.compile(r"\s*")
_EXPLAINED = 1 << 24  # characters of a file that is read as a whole to tell what it is


class Jsonl(Source):
    """``.jsonl``, ``.ndjson`` or ``.json``, plain or gzip. An empty line is a broken row, except at the end."""

    suffixes = (".jsonl", ".ndjson", ".json")

    def read(self, path: str) -> Iterator[Row]:
        is_list = False
        if path.lower().removesuffix(".gz").endswith(".json"):
            first = next((line for _, line in lines(path, _WHOLE) if line.strip()), "")
            is_list = first.lstrip().startswith("[")
        yield from _items(path) if is_list else without_final_empty_lines(_rows(path))


def _rows(path: str) -> Iterator[Row]:
    judged = False
    for number, line in lines(path):
        row = _row(path, number, line)
        if not judged and row.problem != EMPTY_LINE:
            judged = True
            if row.problem and (found := _several_lines(path)):
                raise found
        yield row


def _row(path: str, number: int, line: str) -> Row:
    if not line.strip():
        return Row({}, path, number, EMPTY_LINE)
    if problem := undecodable(line):
        return Row({}, path, number, problem)
    try:
        return _checked(path, number, json.loads(line, object_pairs_hook=_object))
    except json.JSONDecodeError as error:
        return Row({}, path, number, f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:
        return Row({}, path, number, f"not valid JSON: {error}")
    except _Repeated as error:
        return Row({}, path, number, str(error))


def _items(path: str) -> Iterator[Row]:
    parts, size = [], 0
    for _, line in lines(path, _WHOLE):
        parts.append(line)
        size += len(line) + 1
        if size > _WHOLE:
            raise UserError(f"{path} holds one list of more than {_WHOLE >> 20} MiB.", "Write one object on each line.")
    text = "\n".join(parts)
    if problem := undecodable(text):
        raise UserError(f"{path}: {problem}.", "Save the file as UTF-8, or write one JSON object on each line.")
    try:
        items = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: not valid JSON: {error}.", "Write one object on each line, or one list of objects."
        ) from None
    except _Repeated as error:
        raise UserError(f"{path}: {error}.", "Give each value of an object a different name.") from None
    yield from (_checked(path, number, item) for number, item in enumerate(items, 1))


def _several_lines(path: str) -> UserError | None:
    """The error for a file whose first line is no object because objects or lists go over several lines."""
    parts: list[str] = []
    size = 0
    for _, line in lines(path):
        parts.append(line)
        size += len(line)
        if size > _EXPLAINED:
            return None
    text, decoder, values = "\n".join(parts).strip(), json.JSONDecoder(), []
    try:
        at = 0
        while at < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr] # it matches everywhere
    except (ValueError, RecursionError):
        return None
    if len(values) >= sum(1 for line in parts if line.strip()) and not (
        len(values) == 1 and isinstance(values[0], list)
    ):
        return None
    if len(values) > 1:
        return UserError(
            f"{path} holds {len(values)} JSON values over several lines.", "Write one object on each line."
        )
    if isinstance(values[0], list):
        return UserError(
            f"{path} holds one list, not one object on each line.", "Name it .json, or write one object on each line."
        )
    lists = (
        [name for name, value in values[0].items() if isinstance(value, list)] if isinstance(values[0], dict) else []
    )
    rows = f" Its rows seem to be under '{lists[0]}'." if lists else ""
    return UserError(
        f"{path} holds one JSON object over several lines, not a list of rows.{rows}",
        "Write one object on each line, or one list of objects.",
    )


class _Repeated(Exception):
    """An object with two values of one name."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated(f"the name '{first_repeated(name for name, _ in pairs)}' occurs twice in an object")
    return found


def _checked(path: str, number: int, value: Any) -> Row:
    if isinstance(value, dict):
        return Row(value, path, number)
    return Row({}, path, number, f"a JSON {type(value).__name__} instead of an object {{...}}")
