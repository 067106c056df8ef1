"""JsonSchema: the text is JSON that a schema accepts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from redraft.constraints import _numbers as numbers
from redraft.constraints import _regex as patterns
from redraft.constraints._bytes import Automaton
from redraft.constraints._kind import Kind
from redraft.errors import UserError, suggest

DEPTH = 2  # levels of arrays and objects where a schema allows any value
_CHARACTERS = r'[^"\\\x00-\x1f]'
_CHARACTER = rf'(?:{_CHARACTERS}|\\["\\/bfnrt])'
_COMMA = ", ?"
_PLAIN = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF))  # neither quote, backslash nor control character
_ANYTHING = patterns.Repeat(patterns.Set(_PLAIN), 0, None)
_SILENT = {
    "$schema", "$id", "$comment", "$defs", "$anchor", "definitions", "title", "description", "default", "examples",
    "example", "deprecated", "readOnly", "writeOnly", "strict", "name",
}  # fmt: skip
_BY_TYPE: Mapping[str, set[str]] = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
}
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


@dataclass(frozen=True)
class JsonSchema(Kind):
    """``json_schema=@schema.json``, or the schema itself. Everything written is valid; not everything valid is written:

    - properties come in the order of the schema, and none that it does not name (unless it names none);
    - one space may follow a comma or colon, and there is no other white space;
    - a value of which nothing is said nests at most two levels; strings have the short escapes only;
    - a number has up to 15 digits on either side of its point, 6 behind it where it has bounds.

    A schema is turned into a regular expression, so recursion, ``not``, ``uniqueItems`` and the like are refused, never
    ignored.
    """

    schema: str  # canonical JSON

    @classmethod
    def of(cls, value: Any) -> JsonSchema:
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UserError(f"json_schema: not valid JSON: {error}.", "json_schema=@FILE reads a file.") from None
        if not isinstance(value, Mapping | bool):
            raise UserError(f"json_schema: {value!r} is no schema.", "It is an object, such as {'type': 'integer'}.")
        return cls(json.dumps(value, ensure_ascii=False))

    def automaton(self) -> Automaton:
        schema = json.loads(self.schema)
        return patterns.from_regex(_Compiler(schema).value(schema, "#", ()))


@dataclass(frozen=True)
class _Compiler:
    """Schema -> regular expression of its JSON texts."""

    root: Any

    def value(self, schema: Any, path: str, above: tuple[str, ...]) -> str:
        """``path`` names the place in errors; ``above`` the references that led here."""
        if schema is True or schema == {}:
            return _any(DEPTH)
        if schema is False:
            raise UserError(f"json_schema: {path} accepts nothing.")
        if not isinstance(schema, Mapping):
            raise UserError(f"json_schema: {path} is no schema: {schema!r}.")
        for keyword, read in self._combiners().items():
            if keyword in schema:
                _check(schema, {keyword, "type"} if keyword in ("enum", "const") else {keyword}, path)
                return read(schema, path, above)
        return self._typed(schema, path, above)

    def _combiners(self) -> dict[str, Callable[[Mapping[str, Any], str, tuple[str, ...]], str]]:
        return {
            "$ref": self._reference,
            "const": lambda schema, path, above: self._constants([schema["const"]], schema, path),
            "enum": lambda schema, path, above: self._constants(schema["enum"], schema, path),
            "anyOf": lambda schema, path, above: self._either(schema["anyOf"], f"{path}/anyOf", above),
            "oneOf": self._one,
            "allOf": self._all,
        }

    def _either(self, branches: Any, path: str, above: tuple[str, ...]) -> str:
        if not isinstance(branches, list) or not branches:
            raise UserError(f"json_schema: {path} is no list of schemas.")
        return "(?:" + "|".join(self.value(branch, f"{path}/{at}", above) for at, branch in enumerate(branches)) + ")"

    def _one(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> str:
        """Exactly one of: the same as any of, where no value can satisfy two of them."""
        branches = schema["oneOf"]
        if isinstance(branches, list) and len(branches) > 1:
            kinds = [self._kinds(branch) for branch in branches]
            apart = all(not a & b for at, a in enumerate(kinds) for b in kinds[at + 1 :])
            if not apart and not self._told_apart(branches):
                raise UserError(f"json_schema: {path}/oneOf has branches that one value may satisfy.", "Use anyOf.")
        return self._either(branches, f"{path}/oneOf", above)

    def _kinds(self, schema: Any) -> set[str]:
        """Types a value of this schema may have."""
        if isinstance(schema, Mapping) and "$ref" in schema:
            schema = self._resolve(schema["$ref"], "#")
        if not isinstance(schema, Mapping):
            return set(_BY_TYPE)
        if "enum" in schema or "const" in schema:
            return {_type_of(value) for value in schema.get("enum", [schema.get("const")])}
        named = schema.get("type", list(_BY_TYPE))
        return {"number" if name == "integer" else name for name in ([named] if isinstance(named, str) else named)}

    def _told_apart(self, branches: list[Any]) -> bool:
        """Do objects in every branch require a property whose constants differ from branch to branch?"""
        seen: list[dict[str, set[str]]] = []
        for branch in branches:
            if isinstance(branch, Mapping) and "$ref" in branch:
                branch = self._resolve(branch["$ref"], "#")
            if not isinstance(branch, Mapping) or branch.get("type") != "object":
                return False
            fixed = {}
            for key, part in branch.get("properties", {}).items():
                if (
                    key in branch.get("required", [])
                    and isinstance(part, Mapping)
                    and ("const" in part or "enum" in part)
                ):
                    fixed[key] = {json.dumps(value) for value in part.get("enum", [part.get("const")])}
            seen.append(fixed)
        common = set.intersection(*(set(fixed) for fixed in seen))
        return any(
            sum(len(fixed[key]) for fixed in seen) == len(set().union(*(f[key] for f in seen))) for key in common
        )

    def _all(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> str:
        parts = schema["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            raise UserError(
                f"json_schema: {path}/allOf of several schemas can't be followed here.", "Write them as one."
            )
        return self.value(parts[0], f"{path}/allOf/0", above)

    def _reference(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> str:
        name = schema["$ref"]
        if name in above:
            chain = " -> ".join([*above[above.index(name) :], name])
            raise UserError(
                f"json_schema: {path} is recursive ({chain}), and a text of bounded length can't follow that.",
                "Write out as many levels as you need.",
            )
        return self.value(self._resolve(name, path), name, (*above, name))

    def _resolve(self, name: Any, path: str) -> Any:
        if not isinstance(name, str) or not name.startswith("#"):
            raise UserError(f"json_schema: {path} refers to {name!r}, which is not in this schema.")
        found = self.root
        for part in filter(None, name[1:].split("/")):
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                raise UserError(f"json_schema: {path} refers to {name!r}, which does not exist.")
            found = found[part]
        return found

    def _constants(self, values: Any, schema: Mapping[str, Any], path: str) -> str:
        if not isinstance(values, list) or not values:
            raise UserError(f"json_schema: {path}/enum is empty.")
        if "type" in schema:
            wanted = {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
            fits = {"number": {"number", "integer"}}
            allowed = set().union(*(fits.get(name, {name}) for name in wanted))
            values = [v for v in values if _type_of(v) in allowed or ("integer" in allowed and type(v) is int)]
            if not values:
                raise UserError(f"json_schema: {path}/enum has no value of its type.")
        return "(?:" + "|".join(re.escape(json.dumps(value, ensure_ascii=False)) for value in values) + ")"

    def _typed(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> str:
        named = schema.get("type")
        if named is None:
            fitting = [name for name, words in _BY_TYPE.items() if words & set(schema)]
            named = [name for name in fitting if name != "integer"] or list(_BY_TYPE)
            if set(schema) <= _SILENT:
                return _any(DEPTH)
        names = [named] if isinstance(named, str) else named
        if not isinstance(names, list) or not names:
            raise UserError(f"json_schema: {path}/type is empty.")
        for name in names:
            if name not in _BY_TYPE:
                raise UserError(f"json_schema: {path} has an unknown type {name!r}.", suggest(str(name), _BY_TYPE))
        _check(schema, {"type"}.union(*(_BY_TYPE[name] for name in names)), path)
        readers: dict[str, Callable[[], str]] = {
            "string": lambda: _string(schema, path),
            "integer": lambda: _number(schema, path, whole=True),
            "number": lambda: _number(schema, path, whole=False),
            "boolean": lambda: "(?:true|false)",
            "null": lambda: "null",
            "array": lambda: self._array(schema, path, above),
            "object": lambda: self._object(schema, path, above),
        }
        parts = [readers[name]() for name in names]
        return parts[0] if len(parts) == 1 else f"(?:{'|'.join(parts)})"

    def _array(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> str:
        low, high = _count(schema, "minItems", path) or 0, _count(schema, "maxItems", path)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise UserError(f"json_schema: {path}/prefixItems is no list of schemas.")
        if high is not None and high < low:
            raise UserError(f"json_schema: {path} has minItems {low} above maxItems {high}.")
        heads = [self.value(part, f"{path}/prefixItems/{at}", above) for at, part in enumerate(first)]
        rest = schema.get("items", True)
        nothing = rest is False or (high is not None and high <= len(heads))
        item = "" if nothing else self.value(rest, f"{path}/items", above) if "items" in schema else _any(DEPTH - 1)
        if nothing:
            high = min(len(heads), len(heads) if high is None else high)
            if high < low:
                raise UserError(f"json_schema: {path} asks for {low} items and allows {high}.")
        if not heads:
            return rf"\[{_listed(item, low, high)}\]" if item else r"\[\]"
        # After the last head comes any number of items; each part stands behind the one before it.
        left = None if high is None else high - len(heads)
        tail = "" if not item else f"(?:{_COMMA}{item}){_times(max(low - len(heads), 0), left)}"
        for at in range(min(len(heads), len(heads) if high is None else high) - 1, -1, -1):
            tail = (_COMMA if at else "") + heads[at] + tail
            if low <= at:
                tail = f"(?:{tail})?"
        return rf"\[{tail}\]"

    def _object(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> str:
        known, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", True)
        if not isinstance(known, Mapping) or not isinstance(required, list):
            raise UserError(f"json_schema: {path}: properties is an object and required a list.")
        missing = [key for key in required if key not in known]
        if missing and more is False:
            raise UserError(f"json_schema: {path} requires {missing[0]!r} and allows no such property.")
        parts = {key: self.value(part, f"{path}/properties/{key}", above) for key, part in known.items()}
        for key in missing:
            parts[key] = _any(DEPTH - 1) if more is True else self.value(more, f"{path}/additionalProperties", above)
        low, high = _count(schema, "minProperties", path) or 0, _count(schema, "maxProperties", path)
        if not parts:
            if more is False:
                value = ""
            else:
                value = _any(DEPTH - 1) if more is True else self.value(more, f"{path}/additionalProperties", above)
            if low > 1:
                raise UserError(f"json_schema: {path}/minProperties can't be followed: names may repeat.", "Name them.")
            if not value and low:
                raise UserError(f"json_schema: {path} asks for {low} properties and allows none.")
            return rf"\{{{_listed(_pair(None, value), low, high)}\}}" if value else r"\{\}"
        if low > len(required) or (high is not None and high < len(parts)):
            raise UserError(
                f"json_schema: {path}: minProperties and maxProperties can't be followed beside properties.",
                "Say which are required.",
            )
        return rf"\{{{_sequence({key: _pair(key, part) for key, part in parts.items()}, set(required))}\}}"


def _sequence(parts: Mapping[str, str], required: set[str]) -> str:
    """Members in order, those not required left out or not, with commas between those that are there."""
    keys = list(parts)
    lead = next((at for at, key in enumerate(keys) if key in required), len(keys))
    if lead < len(keys):
        before = "".join(f"(?:{parts[key]}{_COMMA})?" for key in keys[:lead])
        return before + parts[keys[lead]] + _behind(parts, keys[lead + 1 :], required)
    firsts = [parts[key] + _behind(parts, keys[at + 1 :], required) for at, key in enumerate(keys)]
    return f"(?:{'|'.join(firsts)})?"


def _behind(parts: Mapping[str, str], keys: list[str], required: set[str]) -> str:
    return "".join(f"{_COMMA}{parts[key]}" if key in required else f"(?:{_COMMA}{parts[key]})?" for key in keys)


def _pair(key: str | None, value: str) -> str:
    name = _string({}, "") if key is None else re.escape(json.dumps(key, ensure_ascii=False))
    return f"{name}: ?{value}"


def _listed(item: str, low: int, high: int | None) -> str:
    if high == 0:
        return ""
    more = f"{item}(?:{_COMMA}{item}){_times(max(low - 1, 0), None if high is None else high - 1)}"
    return more if low else f"(?:{more})?"


def _times(low: int, high: int | None) -> str:
    return f"{{{low},{'' if high is None else high}}}"


def _any(depth: int) -> str:
    """Any value that nests at most ``depth`` levels."""
    scalar = f"{_string({}, '')}|{_number({}, '', whole=False)}|true|false|null"
    if depth <= 0:
        return f"(?:{scalar})"
    inner = _any(depth - 1)
    return rf"(?:{scalar}|\[{_listed(inner, 0, None)}\]|\{{{_listed(_pair(None, inner), 0, None)}\}})"


def _string(schema: Mapping[str, Any], path: str) -> str:
    low, high = _count(schema, "minLength", path) or 0, _count(schema, "maxLength", path)
    if high is not None and high < low:
        raise UserError(f"json_schema: {path} has minLength {low} above maxLength {high}.")
    if ("pattern" in schema or "format" in schema) and ("minLength" in schema or "maxLength" in schema):
        raise UserError(
            f"json_schema: {path}: a length beside a pattern can't be followed.", "Put it into the pattern."
        )
    if "format" in schema:
        if "pattern" in schema or schema["format"] not in _FORMATS:
            hint = suggest(str(schema["format"]), _FORMATS)
            raise UserError(f"json_schema: {path}: format {schema['format']!r} can't be followed.", hint)
        return f'"{_FORMATS[schema["format"]]}"'
    if "pattern" in schema:
        if not isinstance(schema["pattern"], str):
            raise UserError(f"json_schema: {path}/pattern is no regular expression.")
        return f'"{_inside(schema["pattern"], path)}"'
    return f'"{_CHARACTER}{_times(low, high) if low or high is not None else "*"}"'


def _inside(pattern: str, path: str) -> str:
    """A pattern, which may match any part of a string, as one of whole strings of characters that need no escape."""
    try:
        found = patterns.within(patterns.whole(patterns.parse(pattern, narrow=True), _ANYTHING), _PLAIN)
    except patterns.Beyond as error:
        raise UserError(f"json_schema: {path}/pattern {pattern!r} can't be followed: {error}.", error.remedy) from None
    return patterns.text(found)


def _number(schema: Mapping[str, Any], path: str, whole: bool) -> str:
    low, above = _bound(schema, "minimum", "exclusiveMinimum", path, max)
    high, below = _bound(schema, "maximum", "exclusiveMaximum", path, min)
    if low is None and high is None:
        digits = f"-?(?:0|[1-9][0-9]{{0,{numbers.MOST - 1}}})"
        return digits + ("" if whole else rf"(?:\.[0-9]{{1,{numbers.MOST}}})?(?:[eE][+-]?[0-9]{{1,2}})?")
    if whole:
        least = None if low is None else int(low // 1) + (low % 1 > 0 or above)
        most = None if high is None else int(high // 1) - (high % 1 == 0 and below)
        found = numbers.integers(least, most)
    else:
        if any(abs(bound or 0) > numbers.LARGEST for bound, strict in ((low, above), (high, below)) if strict):
            raise UserError(f"json_schema: {path}: bounds of a number that are excluded must be below 10^9.")
        found = numbers.decimals(low, high, above, below)
    if not found:
        raise UserError(f"json_schema: {path}: no number lies between its bounds.")
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
                raise UserError(f"json_schema: {path}/{name} is no number: {value!r}.")
            found.append((value, strict))
    if not found:
        return None, False
    best = tighter(value for value, _ in found)
    return best, any(strict for value, strict in found if value == best)


def _count(schema: Mapping[str, Any], name: str, path: str) -> int | None:
    value = schema.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"json_schema: {path}/{name} is no count: {value!r}.")
    return value


def _check(schema: Mapping[str, Any], known: set[str], path: str) -> None:
    """Raises UserError for a keyword that would otherwise be ignored."""
    for key in schema:
        if key not in known and key not in _SILENT:
            raise UserError(f"json_schema: {path}: '{key}' can't be followed.", suggest(key, known))


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names[type(value)]
