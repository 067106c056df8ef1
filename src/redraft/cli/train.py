"""``redraft train``: train a new model, from a recipe or from options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli import _processes as p
from redraft.cli import _training as t
from redraft.cli._common import Device, DryRun, Json
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.train.tables import DataTable, FamilyTable, ModelTable, TrainTable


@verb(order=40, resumes=True, processes=True)
def train(
    context: typer.Context,
    out: t.Out,
    data: Annotated[dict[str, Any], Options(DataTable)],
    family: Annotated[dict[str, Any], Options(FamilyTable)],
    model: Annotated[dict[str, Any], Options(ModelTable, leave_out=("from_",))],
    training: Annotated[dict[str, Any], Options(TrainTable)],
    recipe: Annotated[Path | None, typer.Argument(help="A TOML file, such as those under recipes/.")] = None,
    set_: t.Set = None,
    dry_run: DryRun = False,
    nproc: p.Processes = 1,
    max_restarts: p.Restarts = 0,
    as_json: Json = False,
    device: Device = "auto",
) -> dict[str, Any]:
    """Train a new model. Options override the recipe; without a recipe they describe the whole run.

    \b
    Examples:
      redraft train recipes/toy/masked.toml --out runs/toy
      redraft train --data my.jsonl --input question --target answer --family masked --passes 20 --out runs/mine
      redraft train recipes/toy/masked.toml --set train.lr=5e-4 --minutes 10 --out runs/toy-slow

    Defaults in brackets apply where neither the recipe nor an option gives a value. If the run is interrupted, the same
    command resumes it from the last checkpoint. Validation results are shown with their standard errors.
    """
    from redraft import config

    given = {"data": data, "family": family, "model": model, "train": training}
    given = {name: values for name, values in given.items() if values or name in ("data", "train")}
    values = config.merge(config.read_toml(recipe) if recipe else {}, given)
    where, folder = (str(recipe), str(recipe.resolve().parent)) if recipe else ("command line", "")
    made = t.recipe_of(values, where, set_, folder)
    p.start(context, made, nproc, max_restarts)
    return t.run(made, out, device, as_json, dry_run)
