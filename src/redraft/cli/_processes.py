"""Several processes for ``train`` and ``finetune``: torchrun starts the same command in each of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from redraft.cli._common import log
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.train.recipe import Recipe

Processes = Annotated[
    int,
    typer.Option(
        "--nproc",
        min=1,
        metavar="N",
        help="Processes on this machine that train together, each on a GPU of its own. With several machines: torchrun "
        "(see docs/distributed.md).",
    ),
]
Restarts = Annotated[
    int,
    typer.Option(
        "--max-restarts",
        min=0,
        metavar="N",
        help="How often all processes start again from the last checkpoint when one of them was lost.",
    ),
]


def start(context: typer.Context, recipe: Recipe, processes: int, restarts: int) -> None:
    """Run this command in several processes, and exit when they have ended. Returns where it is one of them already, or
    if no others are wanted.

    Raises:
        UserError: the options don't fit together, or the recipe can't be trained by so many processes.
        KeyboardInterrupt: Ctrl-C, when the processes have ended.
        Exit: the processes have ended.
    """
    from redraft.train.ranks import Ranks, launched

    if (own := launched()).world > 1:
        if processes not in (1, own.world):
            what = f"This is one of {own.world} processes already, so that --nproc {processes} can't start others."
            raise UserError(what, "Leave it out.")
        return
    if processes == 1:
        if restarts:
            raise UserError("--max-restarts needs several processes.", "Add --nproc 2, or use torchrun.")
        return
    Ranks(world=processes).share(recipe.train.accumulate)
    raise typer.Exit(_torchrun(context.find_root().obj, processes, restarts))


def _torchrun(arguments: list[str], processes: int, restarts: int) -> int:
    """Run ``redraft`` with these arguments in several processes. Returns the exit code."""
    import signal
    import sys
    import tempfile
    import uuid

    import torch
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // processes)))
    try:
        with tempfile.TemporaryDirectory(prefix="redraft-") as logs:
            how = LaunchConfig(  # torchrun --standalone
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=processes,
                max_restarts=restarts,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                run_id=str(uuid.uuid4()),
                logs_specs=DefaultLogsSpecs(logs),
            )
            elastic_launch(how, sys.executable)("-u", "-m", "redraft", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode != 2:  # the process itself has said what the user can correct
            log(f"The process of rank {rank} failed. The same command continues from the last checkpoint.")
        return failure.exitcode if failure.exitcode > 0 else 1
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        return 128 + error.sigval
    return 0
