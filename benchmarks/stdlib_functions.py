"""Functions of Python's standard library as rows of prompt and answer: signature and docstring, and the body.

    python -m benchmarks.stdlib_functions --out code [--longest 600]

Writes OUT.{train,validation,test}.jsonl with the columns ``prompt`` and ``body``. A module is in one split as a whole
(by a hash of its name), tests of the library and functions without a docstring are left out, and so are bodies of more
than ``--longest`` characters. The rows depend on the version of Python. Licence of the text: PSF-2.0.
"""

from __future__ import annotations

import argparse
import ast
import json
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path

from redraft.data.examples import unit_hash
from redraft.files import write_atomically

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "ensurepip", "turtledemo", "__phello__", "tkinter"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--longest", type=int, default=600, help="characters of a prompt and of a body")
    args = parser.parse_args()
    rows: dict[str, dict[str, str]] = {"train": {}, "validation": {}, "test": {}}
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        module = path.relative_to(library)
        if LEFT_OUT.isdisjoint(module.parts):
            point = unit_hash(str(module), 0)
            split = "test" if point < 0.06 else "validation" if point < 0.1 else "train"
            for prompt, body in functions(path):
                if max(len(prompt), len(body)) <= args.longest:
                    rows[split].setdefault(prompt, body)
    for split, found in rows.items():
        lines = (json.dumps({"prompt": prompt, "body": body}) for prompt, body in found.items())
        write_atomically(Path(f"{args.out}.{split}.jsonl"), "\n".join(lines) + "\n")
        print(f"{split}: {len(found)} functions")


def functions(path: Path) -> Iterator[tuple[str, str]]:
    """Signature with docstring, and the body after it, of the functions and methods of a module."""
    try:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = text.splitlines(keepends=True)
    for node in ast.walk(tree):
        if isinstance(node, FUNCTIONS) and ast.get_docstring(node) and len(node.body) > 1:
            begin, end = node.lineno - 1, node.body[0].end_lineno or 0
            whole = textwrap.dedent("".join(lines[begin : node.end_lineno]))
            head = "".join(whole.splitlines(keepends=True)[: end - begin])
            if body := whole[len(head) :].rstrip():
                yield head, body


if __name__ == "__main__":
    main()
