"""Constraints of every size: honest schemas compile, what would explode is refused, and case is ignored as by re."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest

from redraft.constraints.automata import case_folding, patterns
from redraft.constraints.json_schema import JsonSchema
from redraft.constraints.regex import Regex
from redraft.errors import UserError


def members(count: int, leaf: Any, required: tuple[int, ...] = ()) -> dict[str, Any]:
    names = [f"k{number}" for number in range(count)]
    needed = [names[at] for at in required]
    properties = dict.fromkeys(names, leaf)
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def nested(levels: int, count: int, leaf: Any) -> Any:
    return leaf if levels == 0 else members(count, nested(levels - 1, count, leaf))


def doubling(levels: int) -> dict[str, Any]:
    """A schema of references, each of which leads to two of the next."""
    twice = [{"a": {"$ref": f"#/$defs/{at + 1}"}, "b": {"$ref": f"#/$defs/{at + 1}"}} for at in range(levels)]
    defs: dict[str, Any] = {str(at): {"type": "object", "properties": part} for at, part in enumerate(twice)}
    return {"$ref": "#/$defs/0", "$defs": {**defs, str(levels): {"type": "null"}}}


def array(levels: int) -> Any:
    return {"type": "array", "items": array(levels - 1)} if levels else {"type": "integer"}


@pytest.mark.parametrize("required", [(), (0,), (1,), (3,), (0, 2), (0, 1, 2, 3)])
def test_optional_properties_may_be_left_out_in_every_combination(required: tuple[int, ...]) -> None:
    """Enumeration: an object is accepted iff it has the required members, and all members in the schema's order."""
    automaton = JsonSchema.of(members(4, {"type": "null"}, required)).automaton()
    for size in range(5):
        for chosen in itertools.permutations(range(4), size):
            text = "{" + ",".join(f'"k{at}":null' for at in chosen) + "}"
            right = list(chosen) == sorted(chosen) and set(required) <= set(chosen)
            assert automaton.accepts(text.encode()) == right, text


@pytest.mark.parametrize(("low", "high"), [(0, None), (1, None), (2, None), (0, 1), (0, 3), (2, 2), (1, 3)])
def test_arrays_have_as_many_items_as_their_bounds_allow(low: int, high: int | None) -> None:
    bounds = {"minItems": low} | ({} if high is None else {"maxItems": high})
    automaton = JsonSchema.of({"type": "array", "items": {"enum": [1, 23]}, **bounds}).automaton()
    for size in range(6):
        text = json.dumps([1, 23, 1, 1, 23][:size], separators=(",", ":"))
        assert automaton.accepts(text.encode()) == (low <= size and (high is None or size <= high))
    for wrong in ("[1,]", "[,1]", "[1 1]", "[1,,1]", "["):
        assert not automaton.accepts(wrong.encode())


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        (members(30, {"type": "string", "maxLength": 20}), {"k0": "a", "k7": "\u00e9" * 20, "k29": ""}),
        (nested(2, 10, {"type": "integer"}), {"k3": {}, "k9": {"k0": 5, "k9": -1}}),
        (nested(3, 6, {"type": "string"}), {"k0": {"k5": {"k1": "x", "k2": ""}}, "k5": {}}),
        (array(40), json.loads("[" * 40 + "1" + "]" * 40)),
    ],
)
def test_honest_schemas_compile(schema: Any, text: Any) -> None:
    automaton = JsonSchema.of(schema).automaton()
    assert automaton.accepts(json.dumps(text, ensure_ascii=False, separators=(",", ":")).encode())
    assert not automaton.accepts(json.dumps({"k31": 1}).encode())


@pytest.mark.parametrize(
    "kind",
    [
        JsonSchema.of(doubling(30)),
        JsonSchema.of(nested(12, 2, {"type": "integer"})),
        JsonSchema.of(array(200)),
        JsonSchema.of({"type": "string", "minLength": 10**9}),
        JsonSchema.of({"type": "array", "maxItems": 10**12}),
        JsonSchema.of({"type": "string", "pattern": "a" * 100_000}),
        JsonSchema.of({"type": "integer", "maximum": 10**400}),
        Regex("a{50000}b"),
        Regex(".*a.{16}"),
        Regex("(" * 300 + "a" + ")" * 300),
        Regex("a" * 900_000),
    ],
    ids=lambda kind: str(kind)[:40],
)
def test_what_would_explode_is_refused(kind: Any) -> None:
    with pytest.raises(UserError, match="too large|states|nested|pattern has|between -10|nested"):
        kind.automaton()


def test_repetitions_of_parts_that_may_be_empty_stay_small() -> None:
    automaton = Regex("(a?){3000}").automaton()
    assert automaton.states == 3001
    assert automaton.accepts(b"a" * 3000) and automaton.accepts(b"") and not automaton.accepts(b"a" * 3001)


@pytest.mark.parametrize(
    "pattern",
    ["[^a-z\u4e00-\u9fff]", "[a-z\u4e00-\u9fff]", "[^k]", "[^s]", "k", r"\w", r"[^\W]", "(?a)[a-z]", "(?a)k", "ß", "İ"]
    + ["ı", "[Σ-ω]", "[^\u1c80-\uffff]", "[\U00010400-\U00010420]", "[\ufb05]", r"[\d\u212a]", "[\u0390-\u03b0]"],
)  # fmt: skip
def test_case_is_ignored_as_python_does(pattern: str) -> None:
    node, expected = patterns.parse(f"(?i){pattern}"), re.compile(f"(?i){pattern}")
    assert isinstance(node, patterns.Set)
    cased = {one for members in case_folding._classes() for one in members}
    for code in cased | set(range(0x3000)) | set(range(0x4DF0, 0x4E10)) | {0x345, 0xFFFF, 0x10000, 0x10FFFF}:
        found = any(first <= code <= last for first, last in node.ranges)
        assert found == (expected.fullmatch(chr(code)) is not None), hex(code)


STRING, OBJECT = {"type": "string"}, {"type": "object"}


@pytest.mark.parametrize(
    ("branches", "apart"),
    [
        ([{"const": "ja"}, {"const": "nein"}], True),
        ([{"const": 1}, {"const": 1.0}], False),
        ([{"const": 1}, {"const": True}], True),
        ([{"enum": [1, 2]}, {"enum": [3, "2"]}], True),
        ([{"const": {"a": 1, "b": 2}}, {"const": {"b": 2.0, "a": 1}}], False),
        ([{"$ref": "#/$defs/name"}, {"type": "null"}], True),
        ([{"const": "abcd"}, {"$ref": "#/$defs/name"}], True),
        ([{"const": "abc"}, {"$ref": "#/$defs/name"}], False),
        ([{"const": "x1"}, {**STRING, "pattern": "^[a-z]+$"}], True),
        ([{"type": "integer", "maximum": 4}, {"type": "number", "exclusiveMinimum": 4}], True),
        ([{"type": "integer", "maximum": 4}, {"type": "number", "minimum": 4}], False),
        ([{**STRING, "maxLength": 2}, {**STRING, "minLength": 3}], True),
        ([{"type": "array", "maxItems": 1}, {"type": "array", "minItems": 1}], False),
        ([{"anyOf": [{"type": "null"}, {"const": 5}]}, {"type": "integer", "minimum": 6}], True),
        ([{**OBJECT, "required": ["a"]}, {**OBJECT, "properties": {"b": STRING}, "additionalProperties": False}], True),
        ([{**OBJECT, "properties": {"a": STRING}}, {**OBJECT, "properties": {"b": STRING}}], False),
        (
            [{**OBJECT, "properties": {"t": {"const": kind}}, "required": ["t"]} for kind in ("a", "b", "c")],
            True,
        ),
    ],
)
def test_one_of_is_followed_where_no_value_satisfies_two_branches(branches: list[Any], apart: bool) -> None:
    schema = {"oneOf": branches, "$defs": {"name": {"$ref": "#/$defs/text"}, "text": {**STRING, "maxLength": 3}}}
    if apart:
        JsonSchema.of(schema).automaton()
    else:
        with pytest.raises(UserError, match="may accept the same value"):
            JsonSchema.of(schema).automaton()


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"^C:\\[a-z]+$", ["C:\\abc"], ["C:abc", "C:\\"]),
        ('^"[a-z]+"$', ['"ja"'], ["ja"]),
        (r"^a\nb\t$", ["a\nb\t"], ["a b "]),
        ('^[^"]$', ["x"], ['"', "\\"]),
        (r"^[\\/]$", ["/"], ["\\"]),
    ],
)
def test_a_pattern_that_needs_an_escape_gets_it(pattern: str, good: list[str], bad: list[str]) -> None:
    automaton = JsonSchema.of({"type": "string", "pattern": pattern}).automaton()
    for value in good:
        assert re.search(pattern, value) and automaton.accepts(json.dumps(value).encode()), value
    for value in bad:
        assert not automaton.accepts(json.dumps(value).encode()), value
