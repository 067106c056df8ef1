"""Shared by ``train`` and ``finetune``: options, the recipe made from them, and a run with its progress shown."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import log
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.train.recipe import Recipe

Out = Annotated[Path, typer.Option(help="Folder for the model. The same command resumes an interrupted run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any key of a recipe (see: docs/recipes.md); repeatable."),
]


DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the memory that the run needs, and stop.")]


def run(recipe: Recipe, out: Path, device: str, as_json: bool, dry_run: bool = False) -> dict[str, Any]:
    """Train and show the progress. Returns the result for ``--json``.

    Raises:
        UserError: the folder can't be written, the memory doesn't suffice, or as for ``train.loop.train``.
    """
    from redraft import runtime
    from redraft.data.report import describe as describe_data
    from redraft.files import check_writable
    from redraft.train.logging import Progress, describe
    from redraft.train.loop import train
    from redraft.train.memory_plan import fitted
    from redraft.train.setup import texts

    if not dry_run:
        check_writable(out, folder=True)
    splits = texts(recipe)
    chats = any(example.turns for example in splits.train)
    log(str(describe_data(splits)))
    del splits
    recipe, memory = fitted(recipe, runtime.device(device))
    log(str(memory))
    if dry_run:
        return {"memory": memory.to_json()}
    try:
        if sys.stderr.isatty() and not as_json:
            with Progress() as progress:
                result = train(recipe, out, device=device, on_event=progress)
        else:
            result = train(recipe, out, device=device, on_event=lambda event: log(describe(event)))
    except KeyboardInterrupt:
        log(_continuation(out))
        raise
    if not as_json:
        how = "chat" if chats else "generate"
        typer.echo(f"The model is in {out}. Try: redraft {how} --model {out}{'' if chats else ' --prompt TEXT'}")
    return {"model": str(out), **dataclasses.asdict(result)}


def _continuation(out: Path) -> str:
    """From where an interrupted run continues."""
    from redraft.train.checkpoint import checkpoints, step_of

    saved = checkpoints(out / "train")
    return f"The last checkpoint is that of step {step_of(saved[-1])}." if saved else "There is no checkpoint yet."


def recipe_of(values: Mapping[str, Any], where: str, overrides: list[str] | None, folder: str = "") -> Recipe:
    """A checked recipe from its tables.

    Raises:
        UserError: an unknown table or key, or a wrong value.
    """
    from redraft.train.recipe import Recipe

    return Recipe.of(values, where, overrides or [], folder)


def require(given: Mapping[str, Any], field: str, option: str) -> Any:
    """The value of an option that must be given.

    Raises:
        UserError: it was not given.
    """
    if field not in given:
        raise UserError(f"Missing option '{option}'.", "See: redraft finetune --help")
    return given[field]
