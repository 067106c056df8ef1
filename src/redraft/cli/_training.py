"""Shared by ``train`` and ``finetune``: options, the recipe made from them, and a run with its progress shown."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import log
from redraft.errors import UserError

if TYPE_CHECKING:
    import torch

    from redraft.planning.texts import Texts
    from redraft.planning.training import MemoryPlan
    from redraft.train.logging import Watcher
    from redraft.train.ranks import Ranks
    from redraft.train.recipe import Recipe

Out = Annotated[Path, typer.Option(help="Folder for the model. The same command resumes an interrupted run.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Any key of a recipe (see: docs/recipes.md); repeatable."),
]


def run(recipe: Recipe, out: Path, device: str, as_json: bool, dry_run: bool = False) -> dict[str, Any]:
    """Train and show the progress. Returns the result for ``--json``.

    Raises:
        UserError: the folder can't be written, the memory doesn't suffice, or as for ``train.loop.train``.
    """
    from redraft.data.report import describe as describe_data
    from redraft.files import check_writable
    from redraft.planning.texts import Texts
    from redraft.train.loop import train
    from redraft.train.ranks import joined
    from redraft.train.setup import texts

    with joined(device) as (ranks, where):
        tell = log if ranks.is_writer else _silent
        if not dry_run:
            ranks.once(lambda: check_writable(out, folder=True))
        splits = texts(recipe)
        chats = any(example.turns for example in splits.train)
        tell(f"{'a sample of the streamed data: ' if recipe.data.streaming else ''}{describe_data(splits)}")
        size = Texts.of(splits.train, (splits.validation, splits.test))
        del splits
        recipe, memory = ranks.once(lambda: _fitted(recipe, where, ranks, size))
        tell(str(memory))
        if dry_run:
            return {"memory": memory.to_json()}
        try:
            with _shown(as_json, tell) as show:
                result = train(recipe, out, device=device, on_event=show)
        except KeyboardInterrupt:
            tell(_continuation(out))
            raise
    if not as_json and ranks.is_writer:
        how = "chat" if chats else "generate"
        typer.echo(f"The model is in {out}. Try: redraft {how} --model {out}{'' if chats else ' --prompt TEXT'}")
    return {"model": str(out), **dataclasses.asdict(result)}


def _silent(text: str) -> None:
    """Another process says it."""


@contextmanager
def _shown(as_json: bool, tell: Callable[[str], None]) -> Iterator[Watcher]:
    """How the events of a run are shown."""
    from redraft.train.logging import Progress, describe

    if tell is log and sys.stderr.isatty() and not as_json:
        with Progress() as progress:
            yield progress
    else:
        yield lambda event: tell(describe(event))


def _fitted(recipe: Recipe, where: torch.device, ranks: Ranks, size: Texts) -> tuple[Recipe, MemoryPlan]:
    """The recipe with its activation checkpointing chosen, and the plan of the memory of each process."""
    from redraft.planning.parallel import Parallel
    from redraft.planning.training import fitted

    return fitted(recipe, where, Parallel(ranks.world, recipe.train.parallel, local=ranks.local_world), size)


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
