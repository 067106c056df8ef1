"""Can one value satisfy two JSON Schemas? ``oneOf`` can be followed where none can."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TYPES = frozenset({"string", "number", "boolean", "null", "array", "object"})
_NAMES = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
_DEPTH = 8  # levels of schemas that are compared
_SIZES = {"string": ("minLength", "maxLength"), "array": ("minItems", "maxItems")}


@dataclass(frozen=True)
class Comparison:
    """Compares schemas as the specification reads them. Where it can't tell, it assumes that they overlap.

    Fields:
        resolve: from a reference to the schema that it names.
    """

    resolve: Callable[[Any], Any]

    def overlap(self, branches: Sequence[Any]) -> tuple[int, int] | None:
        """The first two branches that one value may satisfy; None if there are none."""
        pairs = itertools.combinations(range(len(branches)), 2)
        return next((pair for pair in pairs if not self.disjoint(branches[pair[0]], branches[pair[1]])), None)

    def disjoint(self, a: Any, b: Any, depth: int = 0) -> bool:
        """Is it certain that no value satisfies both?"""
        a, b = self._target(a), self._target(b)
        if depth > _DEPTH or not isinstance(a, Mapping) or not isinstance(b, Mapping):
            return False
        for one, other in ((a, b), (b, a)):
            for keyword in ("anyOf", "oneOf"):
                if keyword in one:
                    return all(self.disjoint(branch, other, depth + 1) for branch in one[keyword])
            values = _constants(one)
            if values is not None:
                return not any(self.accepts(other, value, depth) for value in values)
        return all(self._apart(kind, a, b, depth) for kind in _types(a) & _types(b))

    def accepts(self, schema: Any, value: Any, depth: int = 0) -> bool:
        """May the schema accept this value?"""
        schema = self._target(schema)
        if not isinstance(schema, Mapping) or depth > _DEPTH:
            return schema is not False
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                return any(self.accepts(branch, value, depth + 1) for branch in schema[keyword])
        kind, values = "null" if value is None else _NAMES[type(value)], _constants(schema)
        if kind not in _types(schema):
            return False
        if values is not None:
            return any(_canonical(value) == _canonical(one) for one in values)
        if kind == "number":
            low, high = _interval(schema)
            return low <= (value, 0) <= high
        if kind in _SIZES and not _size(schema, kind)[0] <= len(value) <= _size(schema, kind)[1]:
            return False
        if kind == "string":
            return _may_match(schema.get("pattern"), value)
        return kind != "object" or self._accepts_object(schema, value, depth)

    def _accepts_object(self, schema: Mapping[str, Any], value: Mapping[str, Any], depth: int) -> bool:
        known = schema.get("properties", {})
        if any(key not in value for key in schema.get("required", [])):
            return False
        if schema.get("additionalProperties") is False and any(key not in known for key in value):
            return False
        return all(self.accepts(known[key], one, depth + 1) for key, one in value.items() if key in known)

    def _target(self, schema: Any) -> Any:
        for _ in range(_DEPTH):
            if not isinstance(schema, Mapping) or "$ref" not in schema:
                return schema
            schema = self.resolve(schema["$ref"])
        return True

    def _apart(self, kind: str, a: Mapping[str, Any], b: Mapping[str, Any], depth: int) -> bool:
        """Is it certain that no value of this type satisfies both?"""
        if kind == "number":
            (low, high), (least, most) = _interval(a), _interval(b)
            return high < least or most < low
        if kind in _SIZES:
            (low_size, high_size), (least_size, most_size) = _size(a, kind), _size(b, kind)
            return high_size < least_size or most_size < low_size
        if kind != "object":
            return False
        for one, other in ((a, b), (b, a)):
            known = other.get("properties", {})
            if other.get("additionalProperties") is False and any(key not in known for key in one.get("required", [])):
                return True
        shared = set(a.get("required", [])) & set(b.get("required", []))
        known, others = a.get("properties", {}), b.get("properties", {})
        return any(self.disjoint(known.get(key, True), others.get(key, True), depth + 1) for key in shared)


def _constants(schema: Mapping[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if "enum" in schema else None


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    """Types that a value of this schema may have."""
    named = schema.get("type", [])
    names = [named] if isinstance(named, str) else named
    return frozenset("number" if name == "integer" else name for name in names) or _TYPES


def _size(schema: Mapping[str, Any], kind: str) -> tuple[float, float]:
    least, most = _SIZES[kind]
    return schema.get(least, 0), schema.get(most, math.inf)


def _interval(schema: Mapping[str, Any]) -> tuple[tuple[float, int], tuple[float, int]]:
    """The lowest and the highest number; (x, 1) is just above x, and (x, -1) just below."""
    low = max((schema.get("minimum", -math.inf), 0), (schema.get("exclusiveMinimum", -math.inf), 1))
    high = min((schema.get("maximum", math.inf), 0), (schema.get("exclusiveMaximum", math.inf), -1))
    return low, high


def _may_match(pattern: Any, value: str) -> bool:
    try:
        return not isinstance(pattern, str) or len(value) > 200 or re.search(pattern, value) is not None
    except re.error:
        return True


def _canonical(value: Any) -> str:
    """A text that is the same for equal values: 1 and 1.0 are equal, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, list):
        return f"[{','.join(map(_canonical, value))}]"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{json.dumps(key)}:{_canonical(value[key])}' for key in sorted(value))}}}"
    return json.dumps(value)
