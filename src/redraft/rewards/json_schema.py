"""JsonSchema: the text is valid JSON, and a schema accepts it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from redraft.errors import UserError
from redraft.metrics import need
from redraft.options import setting
from redraft.rewards.base import Answer, Reward


@dataclass(frozen=True)
class JsonSchema(Reward):
    """1 if the whole text is one JSON value without duplicate keys, NaN or infinities that the schema accepts, else 0.

    A truncated text earns nothing. Without a schema, any JSON value does.

    Fields:
        schema: a JSON Schema as text, the same for all rows.
        column: the column of a schema of the row's own (text or object), used where ``schema`` is empty.
    """

    schema: str = setting("", "A JSON Schema, for all rows.")
    column: str = setting("schema", "Column of the schema of a row.")

    def ready(self) -> None:
        """Check the schema.

        Raises:
            UserError: it is not a schema, or the validator is not installed.
        """
        if self.schema:
            _validator(self.schema)

    def _of(self, row: Mapping[str, Any]) -> str:
        """The schema of a row; empty if there is none."""
        own = row.get(self.column)
        return self.schema or ("" if own is None else own if isinstance(own, str) else json.dumps(own))

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """A schema of the row must be one."""
        schema = self._of(row)
        try:
            if schema:
                _validator(schema)
        except UserError as error:
            return error.what.rstrip(".")
        return ""

    def score(self, answer: Answer) -> float:
        """1 or 0."""
        if answer.truncated:
            return 0.0
        try:
            value = strict(answer.text)
            schema = self._of(answer.row)
            return float(not schema or _validator(schema).is_valid(value))
        except (ValueError, RecursionError, OverflowError):
            return 0.0


def strict(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, a key that occurs twice in an object, NaN or an infinity.
    """
    return json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _number(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return value


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Any:
    library = need("jsonschema_rs", "jsonschema-rs")
    try:
        return library.validator_for(json.loads(schema))
    except (ValueError, library.ValidationError) as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise UserError(f"Not a JSON Schema: {reason}.", "Correct it.") from None
