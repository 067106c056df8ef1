"""Patterns for JSON values: strings, numbers, members of objects, and any value."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from redraft.constraints.automata import patterns
from redraft.constraints.automata.case_folding import Ranges
from redraft.constraints.automata.patterns import Chain, Choice, Listed, Node, Repeat, Set, text
from redraft.constraints.shared import numbers
from redraft.errors import UserError, suggest

DEPTH = 2  # levels of arrays and objects inside a value that the schema does not describe
_PLAIN: Ranges = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))  # no quote, backslash or control character
_ESCAPES = {
    '"': '"',
    "\\": "\\",
    "\b": "b",
    "\f": "f",
    "\n": "n",
    "\r": "r",
    "\t": "t",
}  # character -> after a backslash
_CHARACTER = Choice((Set(_PLAIN), Chain((text("\\"), Set(patterns.joined([(ord(c), ord(c)) for c in '"\\/bfnrt']))))))
_ANYTHING = Repeat(Set(_PLAIN), 0, None)
QUOTE = text('"')
_SPACE = Repeat(text(" "), 0, 1)
COMMA = Chain((text(","), _SPACE))
_COLON = Chain((text(":"), _SPACE))
_LONGEST_PATTERN = 10_000  # characters
MAX_NUMBER = 10**15  # of bounds
_MONTHS = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DATE = f"[0-9]{{4}}-(?:{_MONTHS}|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "uuid": "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "email": r"[a-z0-9_+-]+(?:\.[a-z0-9_+-]+)*@[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z]{2,})+",
}


@lru_cache(maxsize=256)
def regex(pattern: str) -> Node:
    """A regular expression as a pattern."""
    return patterns.without_anchors(patterns.parse(pattern), None)


def pair(key: str | None, value: Node) -> Node:
    """A member of an object; ``key`` None: any name."""
    name = string({}, "") if key is None else text(json.dumps(key, ensure_ascii=False))
    return Chain((name, _COLON, value))


def inside(opening: str, value: Node, closing: str) -> Node:
    """A pattern in brackets."""
    return Chain((text(opening), value, text(closing)))


@lru_cache(maxsize=8)
def any_value(depth: int) -> Node:
    """Any value with at most ``depth`` nested levels."""
    scalars = [string({}, ""), number({}, "", whole=False), text("true"), text("false"), text("null")]
    if depth <= 0:
        return Choice(tuple(scalars))
    inner = any_value(depth - 1)
    array, members = Listed(inner, COMMA, 0, None), Listed(pair(None, inner), COMMA, 0, None)
    return Choice((*scalars, inside("[", array, "]"), inside("{", members, "}")))


def string(schema: Mapping[str, Any], path: str) -> Node:
    """Strings of a schema.

    Raises:
        UserError: bounds that contradict, or a pattern or format that can't be compiled.
    """
    low, high = count(schema, "minLength", path) or 0, count(schema, "maxLength", path)
    if high is not None and high < low:
        raise UserError(f"json_schema: {path} has minLength {low} above maxLength {high}.", "Exchange them.")
    if ("pattern" in schema or "format" in schema) and ("minLength" in schema or "maxLength" in schema):
        raise UserError(
            f"json_schema: {path} has a length bound and a {'format' if 'format' in schema else 'pattern'}.",
            "Put the bound into the pattern.",
        )
    if "format" in schema:
        if "pattern" in schema or schema["format"] not in _FORMATS:
            hint = suggest(str(schema["format"]), _FORMATS)
            raise UserError(f"json_schema: {path}: format {schema['format']!r} is not supported.", hint)
        return inside('"', regex(_FORMATS[schema["format"]]), '"')
    if "pattern" in schema:
        if not isinstance(schema["pattern"], str):
            raise UserError(f"json_schema: {path}/pattern is not a text.", "Write a regular expression in quotes.")
        return inside('"', _part(schema["pattern"], path), '"')
    return inside('"', Repeat(_CHARACTER, low, high), '"')


def _part(pattern: str, path: str) -> Node:
    """A pattern that may match any part of a string, as one for whole JSON strings."""
    if len(pattern) > _LONGEST_PATTERN:
        raise UserError(
            f"json_schema: {path}/pattern has {len(pattern)} characters.", f"At most {_LONGEST_PATTERN} are allowed."
        )
    try:
        whole = patterns.without_anchors(patterns.parse(pattern, narrow=True), _ANYTHING)
    except patterns.UnsupportedPattern as error:
        raise UserError(f"json_schema: {path}/pattern {pattern!r} can't be compiled: {error}.", error.remedy) from None
    return patterns.with_sets(whole, _escaped)


def _escaped(ranges: Ranges) -> Node:
    """A set of characters in a JSON string: those that need no escape, or if there are none, the escapes of the others.

    So a pattern that asks for a quote or a backslash gets it, and one that only admits it is followed without.
    """
    plain = patterns.common(ranges, _PLAIN)
    if plain:
        return Set(plain)
    needed = [code for first, last in ranges for code in range(first, last + 1) if chr(code) in _ESCAPES]
    return Choice(tuple(text("\\" + _ESCAPES[chr(code)]) for code in needed))


def number(schema: Mapping[str, Any], path: str, whole: bool) -> Node:
    """Numbers of a schema; ``whole``: integers.

    Raises:
        UserError: a bound that is not a number, or bounds without a number between them.
    """
    low, above = _bound(schema, "minimum", "exclusiveMinimum", path, max)
    high, below = _bound(schema, "maximum", "exclusiveMaximum", path, min)
    if low is None and high is None:
        digits = f"-?(?:0|[1-9][0-9]{{0,{numbers.MAX_DIGITS - 1}}})"
        rest = "" if whole else rf"(?:\.[0-9]{{1,{numbers.MAX_DIGITS}}})?(?:[eE][+-]?[0-9]{{1,2}})?"
        return regex(digits + rest)
    if whole:
        least = None if low is None else int(low // 1) + (low % 1 > 0 or above)
        most = None if high is None else int(high // 1) - (high % 1 == 0 and below)
        found = numbers.integers(least, most)
    else:
        if any(abs(bound or 0) > numbers.MAX_EXCLUDED for bound, strict in ((low, above), (high, below)) if strict):
            raise UserError(
                f"json_schema: {path} excludes a bound above 10^9.", "Use minimum and maximum, or a smaller bound."
            )
        found = numbers.decimals(low, high, above, below)
    if not found:
        raise UserError(f"json_schema: {path}: no number lies between its bounds.", "Widen the bounds.")
    return regex(found)


def _bound(
    schema: Mapping[str, Any], closed: str, open_: str, path: str, tighter: Callable[..., float]
) -> tuple[float | None, bool]:
    """The tighter of an inclusive and an exclusive bound, and whether it is the exclusive one."""
    found: list[tuple[float, bool]] = []
    for name, strict in ((closed, False), (open_, True)):
        if name in schema:
            value = schema[name]
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UserError(f"json_schema: {path}/{name} is not a number: {value!r}.", "Write a number.")
            if not abs(value) <= MAX_NUMBER:
                raise UserError(f"json_schema: {path}/{name} must be between -10^15 and 10^15.", "Leave it out.")
            found.append((value, strict))
    if not found:
        return None, False
    best = tighter(value for value, _ in found)
    return best, any(strict for value, strict in found if value == best)


def count(schema: Mapping[str, Any], name: str, path: str) -> int | None:
    """The value of a keyword that counts something; None if it is absent.

    Raises:
        UserError: it is not a whole number of at least 0.
    """
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"json_schema: {path}/{name} is not a count: {value!r}.", "Write a whole number of at least 0.")
    return value
