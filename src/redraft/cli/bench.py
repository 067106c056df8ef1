"""``redraft bench``: how fast things are on this machine, rivals and ours side by side in one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed, log
from redraft.errors import UserError


def bench(
    name: Annotated[str, typer.Argument(help="decode")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the benchmark; repeat for more.")
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "cpu",
) -> dict[str, Any]:
    """Measure speed on this machine.

    \b
    Examples:
      redraft bench decode
      redraft bench decode --option preset=7m --option new_tokens=128 --json

    Every contender is run in turn, round after round, and compared with the yardstick round by round. --seed and
    --device are taken for the sake of scripts; weights are random and always the same, and the CPU is measured.
    """
    from redraft import config
    from redraft.registry import find

    if device not in ("cpu", "auto"):
        raise UserError(f"the benchmarks measure the CPU, not '{device}'.", "Leave out --device.")
    chosen = config.build(find("bench", name), config.parse_options(option or [], "--option"), f"bench {name}")
    result = {"benchmark": name, "options": config.to_mapping(chosen), **chosen.run(log)}
    if not as_json:
        show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """A table of the contenders, then everything else."""
    typer.echo(f"{'':48} {'tokens/s':>10} {'times as fast as ' + result['yardstick']}")
    for name, row in result["contenders"].items():
        span = f"{row['ratio']:.2f}  [{row['least']:.2f}, {row['most']:.2f}]"
        typer.echo(f"{name:48} {row['tokens_per_second']:10,.0f} {span}")
    for key, value in result.items():
        if key not in ("contenders", "options", "benchmark", "yardstick"):
            typer.echo(f"{key}: {value}")
