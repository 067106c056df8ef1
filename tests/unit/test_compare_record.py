"""results.json: written and read back with its types, and described by the schema in the documentation."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from _studies import constrained, record

from redraft.compare.analysis import analyse
from redraft.compare.record import Record, json_schema
from redraft.errors import UserError

SCHEMA = Path(__file__).parents[2] / "docs" / "results.schema.json"


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    found = analyse(constrained("[a-z ]+"))
    found.save(tmp_path / "results.json")
    assert Record.load(tmp_path / "results.json") == found


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    found = replace(record(), references={"a": math.inf, "b": -math.inf, "c": math.nan})
    found.save(tmp_path / "results.json")
    json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    back = Record.load(tmp_path / "results.json").references
    assert (back["a"], back["b"]) == (math.inf, -math.inf) and math.isnan(back["c"])


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "Can't read"),
        ("{", "not valid JSON"),
        ("[]", "no schema version"),
        ('{"schema": "redraft.compare/1"}', "no schema version"),
        ('{"schema_version": 1}', "schema version 1"),
        ('{"schema_version": 2}', "'created' is not valid"),
    ],
)
def test_files_that_are_no_record_of_this_version_are_rejected(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "results.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        Record.load(path)


def test_the_schema_in_the_documentation_is_made_from_the_types() -> None:
    """Write it anew with ``python -m redraft.compare.record > docs/results.schema.json``."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == json_schema()


def test_a_record_is_valid_by_the_schema() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    found = replace(analyse(constrained("[a-z ]+")), references={"a": math.nan}).to_json()
    assert list(problems(found, schema, schema)) == []
    wrong = {**found, "schema_version": 1, "settings": "none", "caveats": [3]}
    assert len(list(problems(wrong, schema, schema))) == 3
    del wrong["machine"]
    assert len(list(problems(wrong, schema, schema))) == 4


TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
IGNORED = {"$schema", "$defs", "title", "default", "description"}


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "") -> Iterator[str]:
    """What a JSON Schema has against a value; a keyword that is not known here is a problem too."""
    for keyword, wanted in schema.items():
        if keyword == "$ref":
            yield from problems(value, root["$defs"][wanted.rpartition("/")[2]], root, where)
        elif keyword == "anyOf":
            if all(any(problems(value, one, root, where)) for one in wanted):
                yield f"{where}: nothing of {wanted}"
        elif keyword in ("const", "enum", "type", "required"):
            if not simple(value, keyword, wanted):
                yield f"{where}: {value!r} has not {keyword} {wanted!r}"
        elif keyword in ("properties", "additionalProperties", "items"):
            for name, part, one in parts(value, keyword, wanted):
                yield from problems(part, one, root, f"{where}.{name}")
        elif keyword not in IGNORED:
            yield f"{where}: unknown keyword {keyword}"


def simple(value: Any, keyword: str, wanted: Any) -> bool:
    if keyword in ("const", "enum"):
        return value in (wanted if keyword == "enum" else [wanted])
    if keyword == "required":
        return not isinstance(value, dict) or set(wanted) <= set(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted in ("number", "integer"):
        return number and (wanted == "number" or float(value).is_integer())
    return isinstance(value, TYPES[wanted])


def parts(value: Any, keyword: str, wanted: Any) -> list[tuple[Any, Any, dict[str, Any]]]:
    """Name, value and schema of each part of a value that a keyword is about."""
    if keyword == "items":
        return [(number, one, wanted) for number, one in enumerate(value)] if isinstance(value, list) else []
    if not isinstance(value, dict) or not isinstance(wanted, dict):
        return []
    if keyword == "properties":
        return [(name, value[name], one) for name, one in wanted.items() if name in value]
    return [(name, one, wanted) for name, one in value.items()]
