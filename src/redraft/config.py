"""Dataclass <-> mapping. A component's fields are its configuration; unknown keys are errors with a suggestion."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from redraft.errors import UserError, suggest

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a (possibly nested) dataclass from a mapping, checking names and types.

    Args:
        where: how to name the place in an error, such as ``"recipe.toml [train]"``.
    Raises:
        UserError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    _check_keys(cls, values, where)
    from pydantic import ValidationError

    try:
        built: T = _adapter(cls).validate_python(dict(values))  # type: ignore[arg-type]
        return built
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing":
            raise UserError(f"{where}: '{name}' is missing.") from None
        raise UserError(f"{where}: '{name}' = {first['input']!r} is not valid: {first['msg'].lower()}.") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}.") from None


@cache
def _adapter(cls: Any) -> Any:
    """The validator of a class, made once: making one takes longer than a pass of a small network."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls)


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return get_type_hints(cls)


def _check_keys(cls: type, values: Mapping[str, Any], where: str) -> None:
    hints = _hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.init]
    for key, value in values.items():
        if key not in known:
            raise UserError(f"{where}: unknown option '{key}'.", suggest(key, known))
        for hint in (hints[key], *get_args(hints[key])):  # also where it is optional
            if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
                _check_keys(hint, value, f"{where} {key}")  # type: ignore[arg-type]


def parse_options(pairs: list[str], where: str) -> dict[str, Any]:
    """``["threshold=0.9", "order=margin"]`` -> mapping. Values are TOML; a bare word is a string."""
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not sep or not key:
            raise UserError(f"{where}: '{pair}' is not KEY=VALUE.")
        try:
            options[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = text
    return options


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; ``extends = "other.toml"`` (beside it) is read first and overridden, table by table."""
    return _read_toml(path, ())


def _read_toml(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """``above``: the files that extend this one."""
    if path.resolve() in above:
        raise UserError(f"{path}: extends itself.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"recipe '{path}' does not exist.") from None
    except OSError as error:
        raise UserError(f"can't read '{path}': {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends = {base!r} is not the name of a file.")
    return merge(_read_toml(path.parent / base, (*above, path.resolve())), values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Tables merge key by key, everything else is replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def to_mapping(component: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values, ready for JSON."""
    return dataclasses.asdict(component)
