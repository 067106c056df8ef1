"""``redraft train``: a model from scratch, from a recipe or from options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli import _training as t
from redraft.cli._common import Device, Json


def train(
    out: t.Out,
    recipe: Annotated[Path | None, typer.Argument(help="A TOML file, as under recipes/.")] = None,
    data: t.Data = None,
    validation: t.Validation = None,
    data_root: t.DataRoot = None,
    text: t.Text = None,
    input_: t.Input = None,
    target: t.Target = None,
    skip_bad_rows: t.SkipBadRows = False,
    family: Annotated[str | None, typer.Option(help="masked, autoregressive ... (see: redraft models).")] = None,
    network: Annotated[str | None, typer.Option(help="transformer, cross_attention (see: docs/choosing.md).")] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of the network (see: redraft models).")] = None,
    tokens: t.Tokens = None,
    passes: t.Passes = None,
    minutes: t.Minutes = None,
    lr: t.Rate = None,
    set_: t.Set = None,
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same model.")] = None,
    device: Device = "auto",
) -> dict[str, Any]:
    """Train a model from scratch. Options override the recipe; without a recipe they are one.

    \b
    Examples:
      redraft train recipes/toy/masked.toml --out runs/toy
      redraft train --data my.jsonl --input question --target answer --family masked --passes 20 --out runs/mine
      redraft train recipes/toy/masked.toml --set train.lr=5e-4 --minutes 10 --out runs/toy-slow

    Stopped at any moment, the same command goes on from the last checkpoint. Validation is reported with its error.
    """
    from redraft import config

    given = {
        "data": t.table(
            source=data,
            validation=validation,
            data_root=data_root,
            text=text,
            input=input_,
            target=target,
            skip_bad_rows=skip_bad_rows,
        ),
        "family": t.table(name=family),
        "model": t.table(network=network, preset=preset),
        "train": t.table(tokens=tokens, passes=passes, minutes=minutes, lr=lr, seed=seed),
    }
    given = {name: values for name, values in given.items() if values or name in ("data", "train")}
    values = config.merge(config.read_toml(recipe) if recipe else {}, given)
    where, folder = (str(recipe), str(recipe.resolve().parent)) if recipe else ("command line", "")
    return t.run(t.recipe_of(values, where, set_, folder), out, device, as_json)
