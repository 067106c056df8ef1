"""``redraft zoo``: build, measure and verify the shipped checkpoints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed, log
from redraft.cli._verbs import verb
from redraft.errors import UserError, suggest

if TYPE_CHECKING:
    from redraft.zoo.card import Record

_ACTIONS = ("list", "build", "measure", "verify")


@verb(order=145, resumes=True)
def zoo(
    action: Annotated[str, typer.Argument(help="list, build, measure or verify.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Checkpoints; none: all.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the training runs of build.")] = Path("runs/zoo"),
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> dict[str, Any]:
    """List, build, measure or verify the shipped checkpoints.

    \b
    Examples:
      redraft zoo list
      redraft zoo verify
      redraft zoo verify translate-en-de-masked
      redraft zoo build translate-en-de-block

    verify checks the files, generates texts for the test rows that are shipped in zoo/rows, and compares the figures
    with those of the model card; the exit code is 1 if one differs by more than its tolerance. build trains a
    checkpoint by recipes/zoo/NAME.toml (the same command resumes), stores it as int8 in zoo/NAME, and writes its card
    and the checksums. measure does the last part only. Everything is measured on the CPU, and --seed has no effect; a
    recipe has its own seed. --device is that of the training.

    Raises:
        UserError: an unknown action or checkpoint, or build without a name.
    """
    if action not in _ACTIONS:
        raise UserError(f"There is no action '{action}'.", suggest(action, _ACTIONS))
    from redraft.shipped import zoo as shipped

    chosen = names or list(shipped())
    if action == "list":
        return _listed(as_json)
    if action == "verify":
        return _verified(chosen, as_json)
    if action == "build" and not names:
        raise UserError("Name the checkpoints to build.", "See: redraft zoo list")
    from redraft.zoo.build import build, measure

    made = [build(name, out / name, device, log) if action == "build" else measure(name, log) for name in chosen]
    if not as_json:
        typer.echo("\n".join(line for record in made for line in _lines(record)))
    return {"checkpoints": [dataclasses.asdict(record) for record in made]}


def _listed(as_json: bool) -> dict[str, Any]:
    """Shipped checkpoints with their figures, and those that can be built."""
    from redraft.shipped import zoo as shipped
    from redraft.zoo.card import CARD, read_record
    from redraft.zoo.recipes import recipe_names

    folders = shipped()
    records = [read_record(folder) for folder in folders.values() if (folder / CARD).is_file()]
    missing = [name for name in recipe_names() if name not in folders]
    if not as_json:
        for record in records:
            typer.echo("\n".join(_lines(record)))
        typer.echo("\n".join(f"{name:34} not built: redraft zoo build {name}" for name in missing), nl=bool(missing))
    return {"checkpoints": [dataclasses.asdict(record) for record in records], "not_built": missing}


def _lines(record: Record) -> list[str]:
    lines = []
    for task, one in record.measured.items():
        name = f"{record.name} ({task})" if task else record.name
        quality = ", ".join(f"{m.value:.1f} {m.label}" for m in one.metrics.values())
        sign = "<=" if one.likelihood.is_bound else "="
        bits = f"bits/byte {sign} {one.likelihood.bits_per_byte:.3f}"
        lines.append(f"{name:34} {record.parameters / 1e6:5.2f}M  {quality}, {one.nfe:.1f} passes, {bits}")
    return lines


def _verified(names: list[str], as_json: bool) -> dict[str, Any]:
    from redraft.zoo.verify import verify

    found = [verify(name, log) for name in names]
    if not as_json:
        for one in found:
            typer.echo(f"{one.name:34} {'as on its card' if one.ok else 'DIFFERS'}")
            for line in one.damaged:
                typer.echo(f"    {line}")
            for check in one.checks:
                sign = "" if check.ok else "  differs by more than the tolerance"
                figures = f"recorded {check.recorded:.3f}, found {check.found:.3f} (tolerance {check.tolerance:.3f})"
                typer.echo(f"    {check.what:28} {figures}{sign}")
    checked = [
        {"name": one.name, "ok": one.ok, "damaged": one.damaged, "checks": [dataclasses.asdict(c) for c in one.checks]}
        for one in found
    ]
    return {"checkpoints": checked, "ok": all(one.ok for one in found)}
