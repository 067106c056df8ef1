"""JSON Schemas as patterns of the JSON texts that they accept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from redraft.constraints.automata.patterns import Chain, Choice, Listed, Members, Node, Repeat, text
from redraft.constraints.shared.json_disjoint import Comparison
from redraft.constraints.shared.json_values import COMMA, DEPTH, any_value, count, inside, number, pair, string
from redraft.errors import UserError, suggest

# Keywords that don't change which values are accepted.
_SILENT = {
    "$schema", "$id", "$comment", "$defs", "$anchor", "definitions", "title", "description", "default", "examples",
    "example", "deprecated", "readOnly", "writeOnly", "strict", "name",
}  # fmt: skip
MAX_DEPTH = 100  # parts of the path to a schema
_BY_TYPE: Mapping[str, set[str]] = {
    "string": {"minLength", "maxLength", "pattern", "format"},
    "integer": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
    "boolean": set(),
    "null": set(),
    "array": {"items", "prefixItems", "minItems", "maxItems"},
    "object": {"properties", "required", "additionalProperties", "minProperties", "maxProperties"},
}


@dataclass(frozen=True)
class Compiler:
    """Compiles a schema to a pattern of its JSON texts.

    A part to which several references lead is compiled once and shared; its copies are counted when the pattern
    becomes an automaton.

    Fields:
        root: the whole schema, in which references are resolved.
    """

    root: Any
    _referred: dict[str, Node] = field(default_factory=dict)

    def value(self, schema: Any, path: str, above: tuple[str, ...]) -> Node:
        """The values of a schema.

        Args:
            path: the location of the schema in the whole one, for errors.
            above: the references that led here.
        Raises:
            UserError: a schema that is not valid or not supported.
        """
        if len(above) + path.count("/") > MAX_DEPTH:
            raise UserError(f"json_schema: more than {MAX_DEPTH} nested levels.", "Write it with fewer.")
        if schema is True or schema == {}:
            return any_value(DEPTH)
        if schema is False:
            raise UserError(f"json_schema: {path} is false, which accepts no value.", "Remove it.")
        if not isinstance(schema, Mapping):
            raise UserError(f"json_schema: {path} is not a schema: {schema!r}.", "Write an object, true or false.")
        for keyword, read in self._combiners().items():
            if keyword in schema:
                _check(schema, {keyword, "type"} if keyword in ("enum", "const") else {keyword}, path)
                return read(schema, path, above)
        return self._typed(schema, path, above)

    def _combiners(self) -> dict[str, Callable[[Mapping[str, Any], str, tuple[str, ...]], Node]]:
        return {
            "$ref": self._reference,
            "const": lambda schema, path, above: self._constants([schema["const"]], schema, path),
            "enum": lambda schema, path, above: self._constants(schema["enum"], schema, path),
            "anyOf": lambda schema, path, above: self._either(schema["anyOf"], f"{path}/anyOf", above),
            "oneOf": self._one,
            "allOf": self._all,
        }

    def _either(self, branches: Any, path: str, above: tuple[str, ...]) -> Node:
        if not isinstance(branches, list) or not branches:
            raise UserError(f"json_schema: {path} is not a list of schemas.", "Write [{...}, {...}].")
        return Choice(tuple(self.value(branch, f"{path}/{at}", above) for at, branch in enumerate(branches)))

    def _one(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Node:
        """oneOf is the same as anyOf if no value can satisfy two branches."""
        branches = schema["oneOf"]
        found = self._either(branches, f"{path}/oneOf", above)  # also checks every branch
        overlap = Comparison(lambda name: self._resolve(name, path)).overlap(branches)
        if overlap is not None:
            raise UserError(
                f"json_schema: the branches {overlap[0]} and {overlap[1]} of {path}/oneOf may accept the same value.",
                "Use anyOf.",
            )
        return found

    def _all(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Node:
        parts = schema["allOf"]
        if not isinstance(parts, list) or len(parts) != 1:
            raise UserError(
                f"json_schema: {path}/allOf with several schemas is not supported.", "Write them as one schema."
            )
        return self.value(parts[0], f"{path}/allOf/0", above)

    def _reference(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Node:
        name = schema["$ref"]
        if name in above:
            chain = " -> ".join([*above[above.index(name) :], name])
            raise UserError(
                f"json_schema: {path} is recursive ({chain}), which is not supported.",
                "Write out as many levels as you need.",
            )
        target = self._resolve(name, path)
        if name not in self._referred:
            self._referred[name] = self.value(target, name, (*above, name))
        return self._referred[name]

    def _resolve(self, name: Any, path: str) -> Any:
        if not isinstance(name, str) or not name.startswith("#"):
            raise UserError(
                f"json_schema: {path} refers to {name!r}, which is outside this schema.", "Use '#/$defs/NAME'."
            )
        found = self.root
        for part in filter(None, name[1:].split("/")):
            part = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, Mapping) or part not in found:
                known = found if isinstance(found, Mapping) else ()
                raise UserError(f"json_schema: {path} refers to {name!r}, which does not exist.", suggest(part, known))
            found = found[part]
        return found

    def _constants(self, values: Any, schema: Mapping[str, Any], path: str) -> Node:
        if not isinstance(values, list) or not values:
            raise UserError(f"json_schema: {path}/enum is empty or not a list.", "Write at least one value.")
        if "type" in schema:
            wanted = {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
            fits = {"number": {"number", "integer"}}
            allowed = set().union(*(fits.get(name, {name}) for name in wanted))
            values = [v for v in values if _type_of(v) in allowed or ("integer" in allowed and type(v) is int)]
            if not values:
                raise UserError(
                    f"json_schema: {path}/enum has no value of type {schema['type']}.", "Change the type or the values."
                )
        return Choice(tuple(text(json.dumps(value, ensure_ascii=False)) for value in values))

    def _typed(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Node:
        named = schema.get("type")
        if named is None:
            fitting = [name for name, words in _BY_TYPE.items() if words & set(schema)]
            named = [name for name in fitting if name != "integer"] or list(_BY_TYPE)
            if set(schema) <= _SILENT:
                return any_value(DEPTH)
        names = [named] if isinstance(named, str) else named
        if not isinstance(names, list) or not names:
            raise UserError(f"json_schema: {path}/type is empty.", "Name a type, or remove it.")
        for name in names:
            if name not in _BY_TYPE:
                raise UserError(f"json_schema: {path} has the unknown type {name!r}.", suggest(str(name), _BY_TYPE))
        _check(schema, {"type"}.union(*(_BY_TYPE[name] for name in names)), path)
        readers: dict[str, Callable[[], Node]] = {
            "string": lambda: string(schema, path),
            "integer": lambda: number(schema, path, whole=True),
            "number": lambda: number(schema, path, whole=False),
            "boolean": lambda: Choice((text("true"), text("false"))),
            "null": lambda: text("null"),
            "array": lambda: self._array(schema, path, above),
            "object": lambda: self._object(schema, path, above),
        }
        return Choice(tuple(readers[name]() for name in names))

    def _array(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Node:
        low, high = count(schema, "minItems", path) or 0, count(schema, "maxItems", path)
        first = schema.get("prefixItems", [])
        if not isinstance(first, list):
            raise UserError(f"json_schema: {path}/prefixItems is not a list of schemas.", "Write [{...}, {...}].")
        if high is not None and high < low:
            raise UserError(f"json_schema: {path} has minItems {low} above maxItems {high}.", "Exchange them.")
        heads = [self.value(part, f"{path}/prefixItems/{at}", above) for at, part in enumerate(first)]
        rest = schema.get("items", True)
        nothing = rest is False or (high is not None and high <= len(heads))
        item = None
        if not nothing:
            item = self.value(rest, f"{path}/items", above) if "items" in schema else any_value(DEPTH - 1)
        if nothing:
            high = min(len(heads), len(heads) if high is None else high)
            if high < low:
                raise UserError(
                    f"json_schema: {path} requires {low} items but allows only {high}.", "Change minItems or items."
                )
        if not heads:
            return inside("[", Chain(()) if item is None else Listed(item, COMMA, low, high), "]")
        # After the last item of prefixItems comes any number of items. Each part needs the one before it.
        left = None if high is None else high - len(heads)
        tail: Node = Chain(())
        if item is not None:
            tail = Repeat(Chain((COMMA, item)), max(low - len(heads), 0), left)
        for at in range(min(len(heads), len(heads) if high is None else high) - 1, -1, -1):
            tail = Chain((*([COMMA] if at else []), heads[at], tail))
            if low <= at:
                tail = Repeat(tail, 0, 1)
        return inside("[", tail, "]")

    def _object(self, schema: Mapping[str, Any], path: str, above: tuple[str, ...]) -> Node:
        known, required = schema.get("properties", {}), schema.get("required", [])
        more = schema.get("additionalProperties", True)
        if not isinstance(known, Mapping) or not isinstance(required, list):
            raise UserError(
                f"json_schema: {path}: properties is not an object, or required is not a list.",
                "Write properties: {...} and required: [...].",
            )
        missing = [key for key in required if key not in known]
        if missing and more is False:
            raise UserError(
                f"json_schema: {path} requires {missing[0]!r}, but additionalProperties is false.",
                "Add it to properties.",
            )
        parts = {key: self.value(part, f"{path}/properties/{key}", above) for key, part in known.items()}
        for key in missing:
            parts[key] = self._additional(more, path, above)
        low, high = count(schema, "minProperties", path) or 0, count(schema, "maxProperties", path)
        if not parts:
            if low > 1:
                raise UserError(
                    f"json_schema: {path}/minProperties {low} is not supported without properties: names may repeat.",
                    "Name the properties.",
                )
            if more is False and low:
                raise UserError(
                    f"json_schema: {path} requires {low} properties but allows none.", "Change additionalProperties."
                )
            if more is False:
                return text("{}")
            return inside("{", Listed(pair(None, self._additional(more, path, above)), COMMA, low, high), "}")
        if low > len(required) or (high is not None and high < len(parts)):
            raise UserError(
                f"json_schema: {path}: minProperties and maxProperties are not supported together with properties.",
                "Name the required properties in required.",
            )
        members = tuple(pair(key, part) for key, part in parts.items())
        return inside("{", Members(members, tuple(key in required for key in parts), COMMA), "}")

    def _additional(self, schema: Any, path: str, above: tuple[str, ...]) -> Node:
        """The value of a property that ``properties`` does not name; ``schema``: of additionalProperties."""
        return any_value(DEPTH - 1) if schema is True else self.value(schema, f"{path}/additionalProperties", above)


def _check(schema: Mapping[str, Any], known: set[str], path: str) -> None:
    """Check that every keyword is supported, so that none is silently ignored.

    Raises:
        UserError: a keyword is not.
    """
    for key in schema:
        if key not in known and key not in _SILENT:
            raise UserError(f"json_schema: {path}: keyword '{key}' is not supported.", suggest(key, known))


def _type_of(value: Any) -> str:
    names = {bool: "boolean", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else names[type(value)]
