"""Each folder is a registry: ``samplers/entropy_bound.py`` defines ``EntropyBound``, whose name is ``entropy_bound``.

The name of a class outside this package is a dotted path, ``my_package.my_module:MyClass``.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from redraft.errors import UserError, suggest

_ROOT = Path(__file__).parent
_BASE = "base"  # file of a folder's base class; it can't be selected by name


class Registered:
    """Base of every class in a registry. ``find`` returns the class by its ``name``."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ()  # fields that are file names: only a server's operator may set them

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        package, _, module = cls.__module__.rpartition(".")
        cls.name = module if package.startswith("redraft.") else f"{cls.__module__}:{cls.__qualname__}"


@cache
def names(folder: str) -> tuple[str, ...]:
    """Public names in a folder (``"samplers"``, ``"noise.schedules"``), without importing its modules."""
    path = _ROOT.joinpath(*folder.split("."))
    found = [m.name for m in pkgutil.iter_modules([str(path)]) if not m.ispkg]
    return tuple(sorted(name for name in found if not name.startswith("_") and name != _BASE))


def field_names(component: Any) -> list[str]:
    """Option names of a registered class or object: the fields of its dataclass."""
    return [field.name for field in dataclasses.fields(component)] if dataclasses.is_dataclass(component) else []


def find(folder: str, name: str) -> Any:
    """The class that the file ``folder/name.py`` defines, or the class at a dotted path ``module:Class``.

    Raises:
        UserError: there is no such file, module or class. The message suggests the most similar name.
    """
    if isinstance(name, str) and ":" in name:  # a configuration file may hold anything
        return _outside(folder, name)
    if name not in names(folder):
        raise UserError(f"Unknown name '{name}' in {folder}.", suggest(name, names(folder)))
    module = importlib.import_module(f"redraft.{folder}.{name}")
    wanted = name.replace("_", "").lower()
    for key, value in vars(module).items():
        if key.lower() == wanted and isinstance(value, type) and value.__module__ == module.__name__:
            return value
    raise TypeError(f"redraft/{folder.replace('.', '/')}/{name}.py must define a class named like the file")


def _outside(folder: str, path: str) -> Any:
    """The class at ``module:Class``. It must derive from the base class of the folder, if there is one."""
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module exists, and something that it imports does not
        raise UserError(f"There is no Python module '{module_name}'.", "Add its folder to PYTHONPATH.") from None
    found = vars(module).get(class_name)
    if not isinstance(found, type):
        classes = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise UserError(f"Module '{module_name}' has no class '{class_name}'.", suggest(class_name, classes))
    base = _base(folder)
    if base is not None and not issubclass(found, base):
        raise UserError(f"'{path}' can't be used in {folder}.", f"Derive it from {base.__module__}.{base.__name__}.")
    return found


def _base(folder: str) -> type | None:
    """The first registered class of the file ``folder/base.py``."""
    if not _ROOT.joinpath(*folder.split("."), f"{_BASE}.py").is_file():
        return None
    module = importlib.import_module(f"redraft.{folder}.{_BASE}")
    classes = [value for value in vars(module).values() if isinstance(value, type) and issubclass(value, Registered)]
    return next(value for value in classes if value.__module__ == module.__name__)
