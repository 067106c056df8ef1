"""A folder is a registry: ``samplers/entropy_bound.py`` defines ``EntropyBound`` and is known as ``entropy_bound``."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any

from redraft.errors import UserError, suggest

_ROOT = Path(__file__).parent


@cache
def names(folder: str) -> tuple[str, ...]:
    """Public names in a folder (``"samplers"``, ``"noise.schedules"``), without importing any of them."""
    path = _ROOT.joinpath(*folder.split("."))
    return tuple(
        sorted(m.name for m in pkgutil.iter_modules([str(path)]) if not m.name.startswith("_") and not m.ispkg)
    )


def find(folder: str, name: str) -> Any:
    """The class that the file ``folder/name.py`` defines.

    Raises:
        UserError: no such file; names the nearest one.
    """
    if name not in names(folder):
        raise UserError(f"unknown name '{name}' in {folder}.", suggest(name, names(folder)))
    module = importlib.import_module(f"redraft.{folder}.{name}")
    wanted = name.replace("_", "").lower()
    for key, value in vars(module).items():
        if key.lower() == wanted and isinstance(value, type) and value.__module__ == module.__name__:
            return value
    raise TypeError(f"redraft/{folder.replace('.', '/')}/{name}.py must define a class named like the file")
