"""``redraft report``: make the report of a study again from its finished pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed, log
from redraft.cli._verbs import verb


@verb(order=75)
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study (redraft compare --out).")],
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Make the report of a study again, without computing anything.

    \b
    Examples:
      redraft report runs/verdict
      redraft report runs/verdict --json

    Reads the finished pieces of a study, also of one that was interrupted, and writes report.html, report.md and
    results.json again. What has not been measured yet is listed. --seed and --device are accepted for the sake of
    scripts; nothing here is random or runs a model.
    """
    from redraft.cli.compare import show
    from redraft.compare.run import render

    record = render(folder)
    for one in record.missing:
        log(f"missing: {one.what}: {one.why}")
    return show(record, folder, as_json)
