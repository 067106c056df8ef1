"""The table of ``redraft doctor --parity``: public checkpoints against the numbers of their own code."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from redraft.cli._common import log

if TYPE_CHECKING:
    from redraft.parity import Check

_HEAD = ("model", "numbers compared", "largest difference", "tolerance", "texts compared", "equal", "pass")


def compare(root: Path, as_json: bool) -> dict[str, Any]:
    """Run every check and show one row a model; failures are listed one by one."""
    from redraft.parity import run

    checks: list[Check] = []
    for check in run(root):
        checks.append(check)
        if not check.ok:
            log(f"! {check.model}: {check.what} differs by {check.difference:.3g} (tolerance {check.tolerance})")
    if not as_json:
        typer.echo(table(checks))
    return {"parity": [asdict(check) for check in checks], "ok": all(check.ok for check in checks)}


def table(checks: list[Check]) -> str:
    """A Markdown table, one row a model."""
    rows = [_HEAD, tuple("---" for _ in _HEAD)]
    for model in dict.fromkeys(check.model for check in checks):
        mine = [check for check in checks if check.model == model]
        numbers = [check for check in mine if check.tolerance != "equal ids"]
        texts = [check for check in mine if check.tolerance == "equal ids"]
        worst = max(numbers, key=lambda check: check.difference)
        kinds = "; ".join(dict.fromkeys(check.what for check in numbers))
        equal = f"{sum(check.ok for check in texts)} of {len(texts)}" if texts else "elsewhere"
        groups = "; ".join(dict.fromkeys(check.what.split(",")[0] for check in texts)) or "-"
        passed = "yes" if all(check.ok for check in mine) else "NO"
        rows.append(
            (model, kinds, f"{worst.difference:.1e}", worst.tolerance.replace("|", "\\|"), groups, equal, passed)
        )
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    notes = dict.fromkeys(
        f"{check.model}: {check.note}" for check in checks if check.note and "passes" not in check.note
    )
    return "\n".join([*lines, *(["", *notes] if notes else [])])
