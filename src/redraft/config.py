"""Build dataclasses from mappings and TOML files. The fields of a component are its configuration."""

from __future__ import annotations

import dataclasses
import tomllib
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from redraft.errors import UserError, suggest

T = TypeVar("T")


def build(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Make a (possibly nested) dataclass from a mapping and check names and types.

    Args:
        where: the source of the values for error messages, such as ``"recipe.toml [train]"``.
    Raises:
        UserError: an unknown key (the remedy names the most similar known key), a missing key, or an invalid value.
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
            raise UserError(f"{where}: '{name}' is missing.", "Set it.") from None
        message = f"{where}: '{name}' = {first['input']!r} is not valid."
        raise UserError(message, f"{first['msg'].replace('Input', 'The value')}.") from None
    except TypeError as error:
        raise UserError(f"{where}: {error}.") from None


@cache
def _adapter(cls: Any) -> Any:
    """The validator of a class, cached because building one takes longer than a forward pass of a small network."""
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
        optional = get_origin(hints[key]) in (Union, types.UnionType)
        for hint in get_args(hints[key]) if optional else (hints[key],):
            if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
                _check_keys(hint, value, f"{where} {key}")  # type: ignore[arg-type]


def parse_options(pairs: list[str], where: str) -> dict[str, Any]:
    """``["threshold=0.9", "order=margin"]`` -> mapping. Values are TOML; a word without quotes is a string.

    Raises:
        UserError: a pair is not KEY=VALUE.
    """
    options: dict[str, Any] = {}
    for pair in pairs:
        key, sep, text = pair.partition("=")
        if not sep or not key:
            raise UserError(f"{where}: '{pair}' is not KEY=VALUE.", f"For example {where} steps=8.")
        try:
            options[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            options[key] = text
    return options


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. With ``extends = "other.toml"`` it overrides that file, which is in the same folder, table by
    table.

    Raises:
        UserError: the file can't be read, is not valid TOML, or extends itself.
    """
    return _read_toml(path, ())


def _read_toml(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """``above`` holds the files that extend this one."""
    if path.resolve() in above:
        raise UserError(f"{path} extends itself.", "Change its line 'extends'.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"The file '{path}' does not exist.", "Check the path.") from None
    except OSError as error:
        raise UserError(f"Can't read '{path}': {error.strerror}.", "Check the path and its permissions.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.", "Correct the file.") from None
    base = values.pop("extends", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: extends = {base!r} is not the name of a file.", "Give a name in quotes.")
    return merge(_read_toml(path.parent / base, (*above, path.resolve())), values)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Override ``base`` with ``over``: tables are merged key by key, other values are replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def to_mapping(component: Any) -> dict[str, Any]:
    """The fields of a dataclass as plain values for JSON."""
    return dataclasses.asdict(component)
