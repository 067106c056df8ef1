"""Regular expressions for JSON values: strings, numbers, lists of members, and any value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from redraft.constraints.automata import patterns
from redraft.constraints.shared import numbers
from redraft.errors import UserError, suggest

DEPTH = 2  # levels of arrays and objects inside a value that the schema does not describe
_CHARACTERS = r'[^"\\\x00-\x1f]'
_CHARACTER = rf'(?:{_CHARACTERS}|\\["\\/bfnrt])'
COMMA = ", ?"
_PLAIN = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))  # no quote, backslash or control character
_ANYTHING = patterns.Repeat(patterns.Set(_PLAIN), 0, None)
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


def pair(key: str | None, value: str) -> str:
    """A member of an object; ``key`` None: any name."""
    name = string({}, "") if key is None else re.escape(json.dumps(key, ensure_ascii=False))
    return f"{name}: ?{value}"


def listed(item: str, low: int, high: int | None) -> str:
    """``low`` to ``high`` items, separated by commas; ``high`` None: no upper bound."""
    if high == 0:
        return ""
    more = f"{item}(?:{COMMA}{item}){times(max(low - 1, 0), None if high is None else high - 1)}"
    return more if low else f"(?:{more})?"


def times(low: int, high: int | None) -> str:
    """The suffix for ``low`` to ``high`` repetitions; ``high`` None: no upper bound."""
    return f"{{{low},{'' if high is None else high}}}"


def any_value(depth: int) -> str:
    """Any value with at most ``depth`` nested levels."""
    scalar = f"{string({}, '')}|{number({}, '', whole=False)}|true|false|null"
    if depth <= 0:
        return f"(?:{scalar})"
    inner = any_value(depth - 1)
    return rf"(?:{scalar}|\[{listed(inner, 0, None)}\]|\{{{listed(pair(None, inner), 0, None)}\}})"


def string(schema: Mapping[str, Any], path: str) -> str:
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
        return f'"{_FORMATS[schema["format"]]}"'
    if "pattern" in schema:
        if not isinstance(schema["pattern"], str):
            raise UserError(f"json_schema: {path}/pattern is not a text.", "Write a regular expression in quotes.")
        return f'"{_inside(schema["pattern"], path)}"'
    return f'"{_CHARACTER}{times(low, high) if low or high is not None else "*"}"'


def _inside(pattern: str, path: str) -> str:
    """A pattern that may match any part of a string, as one for whole strings of characters that need no escape."""
    try:
        found = patterns.restricted(patterns.without_anchors(patterns.parse(pattern, narrow=True), _ANYTHING), _PLAIN)
    except patterns.UnsupportedPattern as error:
        raise UserError(f"json_schema: {path}/pattern {pattern!r} can't be compiled: {error}.", error.remedy) from None
    return patterns.to_regex(found)


def number(schema: Mapping[str, Any], path: str, whole: bool) -> str:
    """Numbers of a schema; ``whole``: integers.

    Raises:
        UserError: a bound that is not a number, or bounds without a number between them.
    """
    low, above = _bound(schema, "minimum", "exclusiveMinimum", path, max)
    high, below = _bound(schema, "maximum", "exclusiveMaximum", path, min)
    if low is None and high is None:
        digits = f"-?(?:0|[1-9][0-9]{{0,{numbers.MAX_DIGITS - 1}}})"
        return digits + ("" if whole else rf"(?:\.[0-9]{{1,{numbers.MAX_DIGITS}}})?(?:[eE][+-]?[0-9]{{1,2}})?")
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
    return found


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
