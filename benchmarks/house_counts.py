"""How large the code is, and how many files a reader meets on the way of one prompt and of one small study.

    python benchmarks/house_counts.py [--study]

The files on the way are those of which a function runs while the command is under way: importing is not counted, and
neither are functions of other libraries. ``--study`` takes about a minute: it trains two tiny models.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SOURCE = Path(__file__).parents[1] / "src" / "redraft"


def executed(call: Callable[[], Any]) -> set[CodeType]:
    """The functions of the package that run during a call, in all threads; code of modules and classes left out."""
    found: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            found.add(frame.f_code)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    home = str(SOURCE) + os.sep
    return {c for c in found if c.co_filename.startswith(home) and c.co_flags & inspect.CO_NEWLOCALS}


def describe(what: str, codes: set[CodeType], listing: bool) -> None:
    """Print the number of files and of lines of these functions, and the files by folder."""
    files = Counter(str(Path(code.co_filename).relative_to(SOURCE)) for code in codes)
    lines = sum(len({line for _, _, line in code.co_lines() if line}) for code in codes)
    print(f"{what}: {len(files)} files, {len(codes)} functions, {lines} lines of code in them")
    folders = Counter(file.split("/")[0] for file in files)
    print("  " + ", ".join(f"{name} {count}" for name, count in folders.most_common()))
    if listing:
        for file, count in sorted(files.items()):
            print(f"  {file}: {count} functions")


def sizes() -> None:
    """Print the sizes of the package and of its shared types."""
    from redraft.model import Model
    from redraft.types import Forward, Spec

    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")]
    lines = [path.read_text(encoding="utf-8").count("\n") for path in SOURCE.rglob("*.py")]
    functions = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = max((node.end_lineno or 0) - node.lineno + 1 for node in functions)
    methods = sum(not name.startswith("_") for name in vars(Model))
    print(f"{len(trees)} files, {sum(lines)} lines, {len(functions)} functions")
    print(f"longest file {max(lines)} lines, longest function {longest} lines")
    print(f"fields of Forward {len(fields(Forward))}, of Spec {len(fields(Spec))}; public members of Model {methods}")


def main() -> None:
    """Print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", action="store_true", help="Count a small study, too.")
    parser.add_argument("--list", action="store_true", help="Name the files.")
    chosen = parser.parse_args()
    sizes()
    import redraft

    model = redraft.load("translate-en-de-masked")
    describe("from a prompt to a text", executed(lambda: model.generate("I am tired.")), chosen.list)
    if chosen.study:
        data = str(SOURCE.parents[1] / "examples" / "data" / "tatoeba.en-de")
        with tempfile.TemporaryDirectory() as out:
            study = redraft.Study(
                data=data, input="english", target="german", out=out, budget_tokens=1000, test_rows=4, timed_calls=3
            )
            describe("from data to a verdict", executed(lambda: redraft.run_study(study)), chosen.list)


if __name__ == "__main__":
    main()
