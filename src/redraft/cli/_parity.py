"""The table of ``redraft doctor --parity``: outputs of public checkpoints, ours against those of their own code."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redraft.cli._common import log

if TYPE_CHECKING:
    from redraft.parity import Check

_HEAD = (
    "model",
    "numbers compared",
    "largest difference",
    "of tolerance",
    "ids and passes compared",
    "equal",
    "pass",
)


def compare(root: Path, as_json: bool) -> dict[str, Any]:
    """Run every check and print one row per model; each failure is listed separately."""
    from redraft.parity import run

    checks: list[Check] = []
    for check in run(root):
        checks.append(check)
        if not check.ok:
            note = f" {check.note}" if check.note else ""
            log(f"! {check.model}: {check.what} differs by {check.difference:.3g} (tolerance {check.tolerance}).{note}")
    if not as_json:
        typer.echo(table(checks))
    return {"parity": [asdict(check) for check in checks], "ok": all(check.ok for check in checks)}


def table(checks: list[Check]) -> str:
    """A Markdown table with one row per model, and below it what is recorded but not compared.

    The difference in a row is the one closest to its tolerance.
    """
    from redraft.parity import IDS, NOTHING

    rows = [_HEAD, tuple("---" for _ in _HEAD)]
    for model in dict.fromkeys(check.model for check in checks if check.tolerance != NOTHING or not check.ok):
        mine = [check for check in checks if check.model == model]
        numbers = [check for check in mine if check.tolerance not in (IDS, NOTHING)]
        texts = [check for check in mine if check.tolerance == IDS]
        worst = max(numbers, key=lambda check: check.used, default=None)
        difference = (f"{worst.difference:.1e}", f"{worst.used:.0%}") if worst else ("-", "-")
        kinds = _briefly(check.what for check in numbers)
        equal = f"{sum(check.ok for check in texts)} of {len(texts)}" if texts else "-"
        groups = "; ".join(dict.fromkeys(check.what.split(",")[0] for check in texts)) or "-"
        passed = "yes" if all(check.ok for check in mine) else "NO"
        rows.append((model, kinds, *difference, groups, equal, passed))
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = dict.fromkeys(
        f"- {check.model}, {check.what + ' not compared' if check.tolerance == NOTHING else check.what}: {check.note}"
        for check in checks
        if check.note
    )
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _briefly(names: Iterable[str]) -> str:
    """Each name once; "x, a" and "x, b" become "x (a, b)"."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        first, _, rest = name.partition(", ")
        found.setdefault(first, []).extend([rest] if rest else [])
    return "; ".join(f"{first} ({', '.join(rest)})" if rest else first for first, rest in found.items())
