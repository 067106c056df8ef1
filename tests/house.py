"""The rules of the code base, checked over the source text.

``python -m tests.house [PATH ...]`` lists what breaks them.

They keep files and functions short, parts exchangeable and docstrings useful. ``unit/test_house.py`` runs them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "redraft"

FILE_LINES, FUNCTION_LINES = 400, 60

# Methods whose shapes and errors are documented once, where the base class or protocol declares them.
# fmt: off
INHERITED = frozenset({
    "start", "plan", "apply", "prepare", "loss", "rollout", "scoring", "candidates", "alpha", "dalpha",
    "narrow", "expand", "combine", "mask", "admit", "possible", "lengths", "forward", "spec", "objective",
    "training", "sampler", "stages", "corrupt", "sample", "posterior", "marginal", "rate", "columns", "join",
    "score_texts", "read", "write"
})
# fmt: on
# Objects of other libraries and of the operating system: what they have cannot be declared here.
FOREIGN = frozenset({"interop", "convert", "parity"})
FOREIGN_NAMES = frozenset({"os", "torch", "module", "error", "function", "sys", "transformers", "tokenizers", "socket"})

_SHAPE = re.compile(r"\[[A-Za-z0-9 ,+*/\-'|.()]*\]")


def files(*paths: Path) -> list[Path]:
    """The Python files below these paths."""
    found: list[Path] = []
    for path in paths:
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def problems(path: Path) -> Iterator[str]:
    """What one file has against the rules, a line each."""
    text = path.read_text(encoding="utf-8")
    lines, tree = text.count("\n"), ast.parse(text)
    where = path.relative_to(ROOT)
    if lines > FILE_LINES:
        yield f"{where}: {lines} lines, at most {FILE_LINES}"
    if not ast.get_docstring(tree):
        yield f"{where}: no docstring that says what the file is for"
    for function, public in _functions(tree):
        size = (function.end_lineno or 0) - function.lineno + 1
        if size > FUNCTION_LINES:
            yield f"{where}:{function.lineno} {function.name}: {size} lines, at most {FUNCTION_LINES}"
        if public and function.name not in INHERITED:
            yield from (f"{where}:{function.lineno} {function.name}: {what}" for what in _undocumented(function, text))
    if path.is_relative_to(SOURCE) and path.relative_to(SOURCE).parts[0] not in FOREIGN:
        yield from (f"{where}:{what}" for what in _lookups(tree))


def _functions(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Every function, and whether it is public: no part of its name is private, and it isn't inside a function."""

    def walk(node: ast.AST, public: bool) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child, public and not child.name.startswith("_")
                yield from walk(child, False)
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, public and not child.name.startswith("_"))
            else:
                yield from walk(child, public)

    yield from walk(tree, True)


def _undocumented(function: ast.FunctionDef | ast.AsyncFunctionDef, text: str) -> Iterator[str]:
    doc = ast.get_docstring(function) or ""
    hints = [a.annotation for a in (*function.args.args, *function.args.kwonlyargs)] + [function.returns]
    head = "\n".join(text.splitlines()[function.lineno - 1 : function.body[0].lineno])
    if any(hint is not None and re.search(r"\bTensor\b", ast.unparse(hint)) for hint in hints):
        comments = re.sub(r"^[^#\n]*", "", head, flags=re.MULTILINE)
        if not _SHAPE.search(doc) and not _SHAPE.search(comments):
            yield "takes or returns tensors, and its docstring gives no shape such as [B, L]"
    raised = {name for node in _own(function) if isinstance(node, ast.Raise) and (name := _exception(node))}
    if raised and "Raise" not in doc and "raise" not in doc:
        yield f"raises {', '.join(sorted(raised))}, and its docstring doesn't say when"


def _own(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions inside it."""
    for child in ast.iter_child_nodes(function):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            yield child
            yield from _own(child)


def _exception(node: ast.Raise) -> str:
    made = node.exc.func if isinstance(node.exc, ast.Call) else None
    name = made.id if isinstance(made, ast.Name) else ""
    return "" if name in ("AssertionError", "NotImplementedError", "RuntimeError") else name


def _lookups(tree: ast.Module) -> Iterator[str]:
    """Attributes that are looked up by their name: a base class with a default says the same, checked by mypy."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id not in ("getattr", "hasattr") or len(node.args) < 2:
            continue
        subject, name = node.args[0], node.args[1]
        root = subject
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in FOREIGN_NAMES:
            continue
        if isinstance(name, ast.Constant):
            yield f"{node.lineno} {node.func.id}(..., {name.value!r}): declare it in a base class"


def circles() -> list[list[str]]:
    """Circles of imports among the modules, those inside functions included, those for type checkers not."""
    known = {_module(path): path for path in files(SOURCE)}
    graph = {name: {target for target in _imports(path) if target in known} for name, path in known.items()}
    found: list[list[str]] = []
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> None:  # Tarjan's strongly connected components
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            part = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(part) > 1:
                found.append(sorted(part))

    sys.setrecursionlimit(10_000)
    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def _module(path: Path) -> str:
    parts = list(path.relative_to(SOURCE.parent).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                found.update(f"{child.module}.{alias.name}" for alias in child.names)
                found.add(child.module)
            walk(child)

    walk(ast.parse(path.read_text(encoding="utf-8")))
    own = _module(path)
    # A package that re-exports from its own files, and a file that imports its package's names, are no circle.
    return {name for name in found if name != own and not own.startswith(f"{name}.")}


def main(arguments: list[str]) -> int:
    """Print every problem below the given paths (all of the source without any), and the circles."""
    found = [
        line for path in files(*map(Path.resolve, map(Path, arguments or [str(SOURCE)]))) for line in problems(path)
    ]
    found += [f"circle of imports: {' -> '.join(part)}" for part in circles()]
    print("\n".join(found))
    print(f"{len(found)} problems")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
