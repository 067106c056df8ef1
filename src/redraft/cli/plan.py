"""``redraft plan``: memory and time of training and serving, before anything is loaded."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed
from redraft.cli._options import Options
from redraft.cli._training import Set
from redraft.cli._verbs import verb


@verb(order=125)
def plan(
    target: Annotated[str | None, typer.Argument(help="A recipe (TOML), or a model. Or give --preset.")] = None,
    *,
    given: Annotated[dict[str, Any], Options("redraft.planning.overview:Question")],
    set_: Set = None,
    scaling: Annotated[
        bool, typer.Option("--scaling", help="Print the tables of docs/scaling.md for --machine instead.")
    ] = False,
    as_json: Json = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> dict[str, Any]:
    """Plan memory and time of training a model and of serving it. Nothing is loaded.

    \b
    Examples:
      redraft plan --preset 8b --machine h100 --gpus 8 --parallel fsdp
      redraft plan recipes/toy/masked.toml
      redraft plan translate-en-de-masked --lora-rank 8 --rows 64
      redraft plan --preset 1b --machine rtx4090 --set train.activation_checkpointing=full --json
      redraft plan --scaling --machine h100

    Activations and operators are counted on a copy of the network without memory, for every family. This machine is
    measured: its speeds for two seconds, and a few updates of a network of this shape. Other machines are known by
    their data sheets. --seed has no effect; every command accepts it. See docs/scaling.md.
    """
    from redraft import config
    from redraft.planning.overview import Question, lines, overview
    from redraft.planning.scaling import tables

    question = config.build(Question, given, "command line")
    if scaling:
        found = tables(question.on(_device(device)))
        if not as_json:
            typer.echo(found)
        return {"tables": found}
    answer = overview(question, target or "", tuple(set_ or ()), device)
    if not as_json:
        typer.echo("\n".join(lines(answer)))
    return answer.to_json()


def _device(name: str) -> Any:
    from redraft import runtime

    return runtime.device(name)
