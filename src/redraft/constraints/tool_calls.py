"""ToolCalls: the text calls tools, with arguments that their schemas accept; or it is any text that is no call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from redraft.constraints.automata.byte_automaton import ByteAutomaton
from redraft.constraints.automata.case_folding import LAST_CODE_POINT
from redraft.constraints.automata.patterns import (
    Chain,
    Choice,
    Listed,
    Node,
    Repeat,
    Set,
    UnsupportedPattern,
    inverted,
    text,
)
from redraft.constraints.automata.regex import from_node
from redraft.constraints.shared.json_compiler import Compiler
from redraft.constraints.shared.kind import Kind
from redraft.data.tools import PLAIN, CallForm
from redraft.errors import UserError, suggest

_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
_KEYS = {"tools", "required", "several", "form"}
_REMEDY = "Give strings and arrays smaller bounds, or name fewer tools."


@dataclass(frozen=True)
class ToolCalls(Kind):
    """``tool_calls=@tools.json``: an object with ``tools``, a list of ``{"name": ..., "parameters": SCHEMA}``.

    - ``required`` (default true): the text is a call. Otherwise it is a call if it begins as one, and any other text.
    - ``several`` (default false): one call or more.
    - ``form``: how calls are written (``data.tools.CallForm``); default: ``<tool_call>``, and JSON in it.

    Arguments are as ``json_schema`` generates them. A tool without ``parameters`` takes none.
    """

    calls: str  # canonical JSON

    @classmethod
    def of(cls, value: Any) -> ToolCalls:
        """Create the constraint from a mapping, or from its JSON text.

        Raises:
            UserError: it is not valid JSON, has unknown keys, or names no tools.
        """
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise UserError(f"tool_calls: not valid JSON: {error}.", "To read a file write @FILE.") from None
        if not isinstance(value, Mapping) or not isinstance(value.get("tools"), list) or not value["tools"]:
            raise UserError("tool_calls: there is no list of tools.", 'Write {"tools": [{"name": ...}]}.')
        for key in value:
            if key not in _KEYS:
                raise UserError(f"tool_calls: unknown key '{key}'.", suggest(key, _KEYS))
        names = [tool.get("name") if isinstance(tool, Mapping) else None for tool in value["tools"]]
        if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
            raise UserError("tool_calls: a tool has no name, or two have the same.", "Give each a name of its own.")
        return cls(json.dumps(value, ensure_ascii=False))

    def automaton(self) -> ByteAutomaton:
        """The language of the calls, and of other texts unless a call is required.

        Raises:
            UserError: the schema of a tool is not valid or not supported, or the automaton is too large.
        """
        value = json.loads(self.calls)
        form = CallForm(**{**asdict(PLAIN), **value.get("form", {})})
        call = Choice(tuple(_call(form, tool) for tool in value["tools"]))
        several = bool(value.get("several")) and bool(form.between)
        listed = Listed(call, text(form.between), 1, None) if several else call
        written: Node = Chain((text(form.begin), listed, text(form.end)))
        if not value.get("required", True):
            written = Choice((written, _no_call(form.marker)))
        try:
            return from_node(written)
        except UnsupportedPattern as error:
            raise UserError(f"tool_calls: the tools can't be compiled: {error}.", _REMEDY) from None


def _call(form: CallForm, tool: Mapping[str, Any]) -> Node:
    """The texts of the calls of one tool."""
    schema, name = tool.get("parameters"), tool["name"]
    if schema is None:
        schema = _NOTHING
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise UserError(
            f"The parameters of the tool '{name}' are not the schema of an object.",
            'Write {"type": "object", "properties": {...}}.',
        )
    schema = {"type": "object", **schema}
    arguments = Compiler(schema).value(schema, f"the parameters of '{name}'", ())
    return Chain((text(form.head(name)), arguments, text("}")))


def _no_call(marker: str) -> Node:
    """All texts that don't begin with the marker."""
    anything = Repeat(Set(((0, LAST_CODE_POINT),)), 0, None)
    parts: list[Node] = []
    for at, character in enumerate(marker):
        other = Set(inverted(((ord(character), ord(character)),)))
        parts += [text(marker[:at]), Chain((text(marker[:at]), other, anything))]
    return Choice(tuple(parts))
