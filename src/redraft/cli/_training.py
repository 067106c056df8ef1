"""What ``train`` and ``finetune`` share: options to recipe tables, and a run in sight."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import log

if TYPE_CHECKING:
    from redraft.train.recipe import Recipe

Out = Annotated[Path, typer.Option(help="Folder for the model; the same command goes on where it stopped.")]
Data = Annotated[str | None, typer.Option(help="File, folder, set by name, or hub:owner/name.")]
Validation = Annotated[str | None, typer.Option(help="Validation data. Unset: a share of --data set apart by hash.")]
DataRoot = Annotated[str | None, typer.Option(envvar="REDRAFT_DATA", help="Folder in which sets are looked up.")]
Text = Annotated[str | None, typer.Option(help="Column of plain text.")]
Input = Annotated[str | None, typer.Option("--input", help="Column of the prompt ...")]
Target = Annotated[str | None, typer.Option(help="... and of what should follow it.")]
SkipBadRows = Annotated[bool, typer.Option("--skip-bad-rows", help="Leave out rows that can't be read, and list them.")]
Tokens = Annotated[int | None, typer.Option(min=1, help="Budget: tokens read in training.")]
Passes = Annotated[float | None, typer.Option(min=0, help="Budget: passes over the data.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Budget: wall clock.")]
Rate = Annotated[float | None, typer.Option("--lr", min=0, help="Peak learning rate.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any option of a recipe; repeat for more.")
]


def table(**given: Any) -> dict[str, Any]:
    """The options that were given, as a recipe's table."""
    return {key: value for key, value in given.items() if value is not None and value is not False}


def run(recipe: Recipe, out: Path, device: str, as_json: bool) -> dict[str, Any]:
    """Train, telling whoever watches; what came out of it, for ``--json``."""
    from redraft.data.report import describe as look
    from redraft.train.logging import Progress, describe
    from redraft.train.loop import train
    from redraft.train.setup import texts

    log(str(look(texts(recipe))))
    if sys.stderr.isatty() and not as_json:
        with Progress() as progress:
            result = train(recipe, out, device=device, on_event=progress)
    else:
        result = train(recipe, out, device=device, on_event=lambda event: log(describe(event)))
    if not as_json:
        typer.echo(f"The model is in {out}. Try: redraft generate --model {out} --prompt TEXT")
    return {"model": str(out), **dataclasses.asdict(result)}


def recipe_of(values: Mapping[str, Any], where: str, overrides: list[str] | None, folder: str = "") -> Recipe:
    """A checked recipe from tables."""
    from redraft.train.recipe import Recipe

    return Recipe.of(values, where, overrides or [], folder)
