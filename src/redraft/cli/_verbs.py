"""The verbs of the command line: found in this folder, declared by their own modules."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from inspect import cleandoc
from typing import Any, TypeVar

from redraft.registry import names

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Verb:
    """One command: ``redraft NAME`` runs the function NAME of ``cli/NAME.py``."""

    name: str
    run: Callable[..., dict[str, Any]]
    order: int  # place in ``redraft --help``
    resumes: bool  # the same command continues after an interruption
    processes: bool = False  # torchrun may start it in several processes

    @property
    def help(self) -> str:
        """Its docstring, without the section on errors."""
        return cleandoc(self.run.__doc__ or "").partition("\nRaises:\n")[0].strip()


_DECLARED: dict[str, Verb] = {}


def verb(order: int, resumes: bool = False, processes: bool = False) -> Callable[[F], F]:
    """Declare the function of a module of this folder as its verb.

    Args:
        order: place in ``redraft --help``.
        resumes: the same command continues where it was interrupted.
        processes: torchrun may start it in several processes, which work together.
    """

    def declare(run: F) -> F:
        _DECLARED[run.__name__] = Verb(run.__name__, run, order, resumes, processes)
        return run

    return declare


def verb_names() -> tuple[str, ...]:
    """All verbs, from the names of the files; nothing is imported."""
    return names("cli")


def find_verb(name: str) -> Verb:
    """Import the module of a verb."""
    importlib.import_module(f"redraft.cli.{name}")
    return _DECLARED[name]


def find_verbs() -> list[Verb]:
    """All verbs in the order of ``redraft --help``."""
    return sorted(map(find_verb, verb_names()), key=lambda one: one.order)
