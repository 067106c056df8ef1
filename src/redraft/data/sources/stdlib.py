"""Stdlib: Python's standard library, as it is installed, ``stdlib:lines``."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from redraft.data.examples import unit_hash
from redraft.data.rows import Row, Source
from redraft.errors import UserError

_LEAST, _MOST = 4, 40  # lines of a function
_SHORTEST = 8  # characters of a line that is asked for
_SHARES = {"test": (0.0, 0.15), "validation": (0.15, 0.25), "train": (0.25, 1.0)}  # of the modules


class Stdlib(Source):
    """``stdlib:lines`` has one missing line of every function of 4 to 40 lines: ``prompt``, ``line``, ``suffix``, and
    the ``module``. ``stdlib:functions`` has whole functions, ``text``.

    A module is in one split, by a hash of its name. Only modules that are single files are read. The rows depend on
    the version of Python.
    """

    holds_splits = True

    def matches(self, path: str) -> bool:
        return path.startswith("stdlib:")

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        return {} if "#" in path else {name: f"{path}#{name}" for name in _SHARES}

    def read(self, path: str) -> Iterator[Row]:
        name, _, part = path.partition("#")
        if name not in ("stdlib:lines", "stdlib:functions"):
            raise UserError(f"There is no source '{name}'.", "Use stdlib:lines or stdlib:functions.")
        low, high = _SHARES[part or "train"]
        number = 0
        for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            if not low <= unit_hash(file.stem, 0) < high:
                continue
            for lines, code in _functions(file):
                text = "".join(lines)
                values = {"text": text, "module": file.stem}
                if name == "stdlib:lines":
                    values = {**_with_gap(lines, code[int(unit_hash(text, 1) * len(code))]), "module": file.stem}
                number += 1
                yield Row(values, path, number)


def _with_gap(lines: list[str], at: int) -> dict[str, str]:
    """What stands before a line and its indentation, the line, and what follows it."""
    line = lines[at].strip()
    indent = lines[at][: len(lines[at]) - len(lines[at].lstrip())]
    return {"prompt": "".join(lines[:at]) + indent, "line": line, "suffix": "\n" + "".join(lines[at + 1 :])}


def _functions(file: Path) -> Iterator[tuple[list[str], list[int]]]:
    """The lines of the functions and methods of a file that are not inside another function, and the numbers of lines
    that are one statement."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    holders: list[ast.Module | ast.ClassDef] = [ast.parse(text)]
    while holders:
        for node in holders.pop(0).body:
            if isinstance(node, ast.ClassDef):
                holders.append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own, first = lines[node.lineno - 1 : node.end_lineno], node.lineno
                within = (one for one in ast.walk(node) if isinstance(one, ast.stmt) and one is not node)
                code = sorted({one.lineno - first for one in within if _is_line(one)})
                code = [at for at in code if len(own[at].strip()) >= _SHORTEST]
                if _LEAST <= len(own) <= _MOST and code:
                    yield own, code


def _is_line(node: ast.stmt) -> bool:
    """Is it a statement on one line, and no documentation?"""
    documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    return not documents and node.lineno == node.end_lineno
