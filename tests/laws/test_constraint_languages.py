"""Laws of constraint languages: patterns, schemas and bounds accept exactly the right texts, and what can't be compiled
is an error."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redraft import registry
from redraft.constraints import build_all, satisfied
from redraft.constraints.automata.regex import from_regex
from redraft.constraints.shared import numbers
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError

BYTES = Tokenizer.bytes()


@pytest.mark.parametrize(
    "pattern",
    ["a|ab", "(a|ab)(c|bcd)?", "a*?b", "(?i)aB", "a{2,}?", "(ab?){0,3}c", "(a?){2,3}", "^a|b$", "(a{1,2}b){2,}"]
    + ["[^a]*", "", "(?:)|é", "[à-ü]?x", ".", "(?s:.)", r"\w\W", "(a|bc*){2,}", "x{0}a", "(^a|b$)", "(?:a|b){1,2}C?"],
)  # fmt: skip
def test_a_pattern_accepts_the_same_texts_as_python(pattern: str) -> None:
    automaton, expected = from_regex(pattern), re.compile(pattern)
    for size in range(6):
        for characters in itertools.product("abcxé\n" if size < 4 else "abc", repeat=size):
            text = "".join(characters)
            assert automaton.accepts(text.encode()) == (expected.fullmatch(text) is not None), text


def test_characters_are_well_formed_utf_8() -> None:
    automaton = from_regex("(?s:.)")
    for code in [*range(0, 0x10000, 61), 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, *range(0x10000, 0x110000, 4099), 0x10FFFF]:
        if not 0xD800 <= code < 0xE000:
            assert automaton.accepts(chr(code).encode())
    for broken in (b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\x80", b"\xe4\xb8"):
        assert not automaton.accepts(broken)


def test_satisfied_checks_all_constraints_and_the_number_of_tokens() -> None:
    texts, tokens = ["ab 12", "ab 123", "cd 12", "ab 12", ""], [3, 3, 3, 9, 0]
    wanted = {"regex": "[a-z]+ [0-9]{2}", "keywords": "ab", "length": "2-5"}
    assert satisfied(wanted, texts, tokens) == [True, False, False, False, False]
    assert satisfied({}, texts, tokens) == [True] * 5


@given(
    low=st.none() | st.integers(-1200, 1200), high=st.none() | st.integers(-1200, 1200), value=st.integers(-1300, 1300)
)
@settings(max_examples=400, deadline=None)
def test_integers_between_bounds(low: int | None, high: int | None, value: int) -> None:
    inside = (low is None or low <= value) and (high is None or value <= high)
    assert bool(re.fullmatch(numbers.integers(low, high) or r"(?!)", str(value))) == inside


_CLOSE = st.integers(-20_000, 20_000).map(lambda thousandths: thousandths / 1000)
_COARSE = st.integers(-84, 84).map(lambda quarters: quarters / 4)


@given(
    low=st.none() | _COARSE | _CLOSE,
    high=st.none() | _COARSE | _CLOSE,
    above=st.booleans(),
    below=st.booleans(),
    value=_COARSE | _CLOSE,
)
@settings(max_examples=400, deadline=None)
def test_decimals_between_bounds(low: float | None, high: float | None, above: bool, below: bool, value: float) -> None:
    inside = (low is None or low < value or (low == value and not above)) and (
        high is None or value < high or (high == value and not below)
    )
    assert bool(re.fullmatch(numbers.decimals(low, high, above, below) or r"(?!)", str(value))) == inside


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"regex": "a(?=b)"}, "look-around"),
        ({"regex": r"(a)\1"}, "back-references"),
        ({"regex": r"\ba"}, "word boundaries"),
        ({"regex": "(a"}, "unterminated"),
        ({"regex": "a$b"}, "inside"),
        ({"regex": "(a|b)*a(a|b){40}"}, "too large"),
        ({"regex": "((a{1,60}){1,60}){1,60}"}, "too large"),
        ({"regex": r"[^\s\S]"}, "No text satisfies"),
        ({"regex": "a+", "keywords": "b"}, "No text satisfies"),
        ({"length": "5-3"}, "upper bound below"),
        ({"length": "many"}, "not a length"),
        ({"keywords": ","}, "no words"),
        ({"template": "Age: [[3]]"}, "infill"),
        ({"json_schema": "{"}, "not valid JSON"),
        ({"json_schema": {"$ref": "#"}}, "recursive"),
        (
            {"json_schema": {"type": "array", "items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#"}}}},
            "recursive",
        ),
        ({"json_schema": {"$ref": "#/$defs/no"}}, "does not exist"),
        ({"json_schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"json_schema": {"not": {}}}, "'not'"),
        ({"json_schema": {"type": "strnig"}}, "string"),
        ({"json_schema": {"type": "number", "exclusiveMinimum": 0.5, "maximum": 0.5}}, "no number"),
        ({"json_schema": {"type": "integer", "multipleOf": 2}}, "multipleOf"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 4}}, "no number"),
        ({"json_schema": {"type": "string", "format": "iri"}}, "format"),
        ({"json_schema": {"oneOf": [{"type": "integer"}, {"type": "number"}]}}, "anyOf"),
        ({"json_schema": {"allOf": [{"type": "string"}, {"minLength": 3}]}}, "allOf"),
        ({"rgex": "a"}, "regex"),
    ],
)
def test_constraints_that_can_not_be_compiled_are_user_errors(wanted: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        build_all(wanted, BYTES)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"properties": {"a": {"type": "null"}, "b": {}}}, ['{}', '{"b":[1]}', '{"a": null, "b":{}}'], ['{"c":1}']),
        ({"oneOf": [{"type": "null"}, {"type": "string"}]}, ["null", '"x"'], ["1"]),
        ({"type": "string", "pattern": "^a.c$"}, ['"abc"', '"aéc"'], ['"a\\"c"', '"xabc"']),
        ({"type": "string", "pattern": "b"}, ['"abc"', '"b"'], ['"ac"']),
        ({"prefixItems": [{"type": "null"}], "items": False}, ["[]", "[null]"], ["[1]", "[null,null]"]),
        ({"$ref": "#/$defs/x", "$defs": {"x": {"enum": ["a", "ab", 1.5]}}}, ['"a"', '"ab"', "1.5"], ['"b"']),
        (True, ['"a"', "-1.5e3", '{"k": [1, true]}', "[[1]]"], ["[[[1]]]", '{"k":[{}]}', "01"]),
        ({"type": ["integer", "null"], "minimum": 7}, ["7", "null", "123"], ["6", "07"]),
    ],
)  # fmt: skip
def test_schemas_accept_and_reject(schema: Any, good: list[str], bad: list[str]) -> None:
    """The good texts are also valid JSON: the language is a subset of the texts that the schema accepts."""
    kind = registry.find("constraints", "json_schema").of(schema)
    automaton = kind.automaton()
    for text in good:
        json.loads(text)
        assert automaton.accepts(text.encode()), text
    for text in bad:
        assert not automaton.accepts(text.encode()), text
