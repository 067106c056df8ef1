"""What the process of the tests asks the process of the program: calls of its functions, with plain data both ways.

It is loaded by ``sandbox.child`` and imports nothing but the standard library. A message is one line of JSON. What is
no plain data (an object of a class, a generator) stays in the program's process and has a number; the tests can call
it, read its attributes and go over its items, and every value that comes back is plain data again. An object that
claims to be equal to everything is therefore equal to nothing.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import json
import os
import sys
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

_LONGEST = 1 << 24  # bytes of a message
_WAYS: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {  # name: type, to JSON, from JSON
    "tuple": (tuple, list, tuple),
    "frozenset": (frozenset, list, frozenset),
    "set": (set, list, set),
    "bytes": (bytes, lambda one: one.decode("latin-1"), lambda one: one.encode("latin-1")),
    "complex": (complex, lambda one: [one.real, one.imag], lambda one: complex(*one)),
    "range": (range, lambda one: [one.start, one.stop, one.step], lambda one: range(*one)),
    "decimal": (Decimal, str, Decimal),
    "fraction": (Fraction, str, Fraction),
}
_NESTED = ("tuple", "frozenset", "set")  # whose members are values themselves


class Gone(Exception):
    """The other process has ended."""


class Line:
    """Messages to the other process and from it, one line each."""

    def __init__(self, read: int, write: int) -> None:
        self._read, self._write, self._rest = read, write, b""

    def send(self, message: Any) -> None:
        """Send a message.

        Raises:
            Gone: nobody reads it.
        """
        data = json.dumps(message).encode() + b"\n"
        try:
            while data:
                data = data[os.write(self._write, data) :]
        except OSError:
            raise Gone from None

    def receive(self) -> Any:
        """The next message.

        Raises:
            Gone: there is none, or it is none.
        """
        while b"\n" not in self._rest:
            part = os.read(self._read, 1 << 16)
            if not part or len(self._rest) > _LONGEST:
                raise Gone
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return json.loads(line)
        except (ValueError, RecursionError):
            raise Gone from None


def packed(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value as JSON. ``other`` packs what is no plain data.

    Raises:
        TypeError: ``other`` refuses it.
    """
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, list):
        return ["list", [packed(one, other) for one in value]]
    if isinstance(value, dict):
        return ["dict", [[packed(key, other), packed(one, other)] for key, one in value.items()]]
    for name, (kind, write, _) in _WAYS.items():
        if isinstance(value, kind):
            parts = write(value)
            return [name, [packed(one, other) for one in parts] if name in _NESTED else parts]
    return other(value)


def unpacked(message: Any, other: Callable[[int], Any]) -> Any:
    """The value of a message. ``other`` finds what has a number.

    Raises:
        Gone: it is no value.
    """
    if not isinstance(message, list):
        return message
    try:
        name, parts = message
        if name == "list":
            return [unpacked(one, other) for one in parts]
        if name == "dict":
            return {unpacked(key, other): unpacked(one, other) for key, one in parts}
        if name == "object":
            return other(int(parts))
        read = _WAYS[name][2]
        return read([unpacked(one, other) for one in parts] if name in _NESTED else parts)
    except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError):
        raise Gone from None


# ---- the process of the program


def serve(line: Line, names: dict[str, Any]) -> None:
    """Answer calls of what a program defines, until nobody asks."""
    kept: list[Any] = []

    def keep(value: Any) -> Any:
        kept.append(value)
        return ["object", len(kept) - 1]

    def answer(order: str, *more: Any) -> Any:
        if order == "names":
            found = {name: names[name] for name in more if name in names}
            return ["dict", [[name, _description(value, keep)] for name, value in found.items()]]
        target, *parts = (unpacked(one, kept.__getitem__) for one in more)
        if order == "call":
            return packed(target(*parts[0], **parts[1]), keep)
        if order == "attribute":
            return packed(getattr(target, parts[0]), keep)
        if order == "set":
            setattr(target, *parts)
            return None
        if order == "items":
            return packed(list(target), keep)
        return packed(len(target) if order == "len" else target[parts[0]], keep)

    while True:
        try:
            order = line.receive()
        except Gone:
            return
        try:
            found = answer(*order)
            line.send(["value", found])
        except Exception as error:
            line.send(["error", type(error).__name__, str(error)[:200]])


def _description(value: Any, keep: Callable[[Any], Any]) -> Any:
    """A module by its name, so that the tests import it themselves; anything else packed."""
    if isinstance(value, types.ModuleType):
        return ["tuple", ["module", value.__name__]]
    return ["tuple", ["value", packed(value, keep)]]


# ---- the process of the tests


class Remote:
    """Something in the process of the program. It is equal to itself alone."""

    _line: Line
    _number: int

    def __init__(self, line: Line, number: int) -> None:
        vars(self).update(_line=line, _number=number)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask(self._line, "set", self, name, value)

    def __call__(self, *parts: Any, **named: Any) -> Any:
        return _ask(self._line, "call", self, parts, named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _ask(self._line, "attribute", self, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(_ask(self._line, "items", self))

    def __len__(self) -> int:
        return int(_ask(self._line, "len", self))

    def __bool__(self) -> bool:
        return True

    def __getitem__(self, key: Any) -> Any:
        return _ask(self._line, "item", self, key)


def _ask(line: Line, order: str, *parts: Any) -> Any:
    line.send([order, *(packed(one, _number) for one in parts)])
    answer = line.receive()
    if not isinstance(answer, list) or len(answer) not in (2, 3):
        raise Gone
    if answer[0] == "value":
        return unpacked(answer[1], lambda number: Remote(line, number))
    kind = vars(builtins).get(str(answer[1]))
    if not (isinstance(kind, type) and issubclass(kind, Exception)) or issubclass(kind, UnicodeError):
        kind = RuntimeError
    raise kind(str(answer[-1]))


def _number(value: Any) -> Any:
    if isinstance(value, Remote):
        return ["object", value._number]
    raise TypeError(f"the tests pass a {type(value).__name__} to the program; only plain data can be passed")


def names_for(line: Line, tests: str) -> dict[str, Any]:
    """What the tests use and the program defines.

    A name of Python's own, such as ``abs``, is the program's only if the tests use no other name of it: else a program
    could redefine what its results are checked with.
    """
    nodes = list(ast.walk(ast.parse(tests)))
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    line.send(["names", *sorted(used)])
    answer = line.receive()
    if not isinstance(answer, list) or len(answer) != 2 or answer[0] != "value":
        raise Gone
    found: dict[str, Any] = {}
    for name, description in unpacked(answer[1], lambda number: Remote(line, number)).items():
        if name not in used or not isinstance(description, tuple) or len(description) != 2:
            raise Gone
        kind, value = description
        if kind == "module":
            if str(value).partition(".")[0] in sys.stdlib_module_names:
                found[name] = importlib.import_module(str(value))
        else:
            found[name] = value
    own = {name for name in found if not hasattr(builtins, name) and not isinstance(found[name], types.ModuleType)}
    return {name: value for name, value in found.items() if name in own or not own or not hasattr(builtins, name)}
