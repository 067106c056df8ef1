"""JsonSchema: the text is JSON that a schema accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.constraints.automata.patterns import UnsupportedPattern
from redraft.constraints.automata.regex import from_node
from redraft.constraints.shared.json_compiler import Compiler
from redraft.constraints.shared.kind import Kind
from redraft.errors import UserError

_REMEDY = "Give strings and arrays smaller bounds, or describe fewer levels and properties."


@dataclass(frozen=True)
class JsonSchema(Kind):
    """``json_schema=@schema.json``, or the schema itself. Every text is valid; not every valid text can be generated:

    - Properties have the order of the schema. Other properties occur only if the schema names none.
    - One space may follow a comma or colon; there is no other white space.
    - A value that the schema does not describe has at most two nested levels; strings use only short escapes.
    - A number has up to 15 digits before and after its point, and 6 after it if it has bounds.

    The schema is compiled to a finite automaton. Recursion, ``not``, ``uniqueItems`` and other keywords that this
    can't express are errors; no keyword is ignored.
    """

    schema: str  # canonical JSON

    @classmethod
    def of(cls, value: Any) -> JsonSchema:
        """Create the constraint from a schema, or from its JSON text.

        Raises:
            UserError: it is not valid JSON, or not a schema.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UserError(
                    f"json_schema: not valid JSON: {error}.", "To read a file write json_schema=@FILE."
                ) from None
        if not isinstance(value, Mapping | bool):
            raise UserError(f"json_schema: {value!r} is not a schema.", "Write an object, such as {'type': 'integer'}.")
        return cls(json.dumps(value, ensure_ascii=False))

    def automaton(self) -> ByteAutomaton:
        """The language of the schema's JSON texts.

        Raises:
            UserError: the schema is not valid or not supported.
        """
        schema = json.loads(self.schema)
        try:
            return from_node(Compiler(schema).value(schema, "#", ()))
        except UnsupportedPattern as error:
            raise UserError(f"json_schema: the schema can't be compiled: {error}.", _REMEDY) from None
