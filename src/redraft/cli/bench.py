"""``redraft bench``: speed on this machine, of redraft and of other implementations in one run."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from redraft.cli._common import Device, Json, Seed, log
from redraft.cli._verbs import verb
from redraft.errors import UserError


@verb(order=120)
def bench(
    name: Annotated[str, typer.Argument(help="Name of the benchmark: decode.")],
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the benchmark; repeatable.")
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

    All implementations run in turn, for several rounds; speeds are ratios to the reference implementation within a
    round. The weights are random and the same in every run, and only the CPU is measured: --seed has no effect, and
    --device accepts only cpu.

    Raises:
        UserError: an unknown benchmark or option, or another device.
    """
    from redraft import config
    from redraft.registry import find

    if device not in ("cpu", "auto"):
        raise UserError(f"The benchmarks measure the CPU, not '{device}'.", "Leave out --device.")
    chosen = config.build(find("bench", name), config.parse_options(option or [], "--option"), f"bench {name}")
    result = {"benchmark": name, "options": config.to_mapping(chosen), **chosen.run(log)}
    if not as_json:
        show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """Print a table of the implementations, then everything else."""
    typer.echo(f"{'':48} {'tokens/s':>10} {'times as fast as ' + result['baseline']}")
    for name, row in result["candidates"].items():
        span = f"{row['ratio']:.2f}  [{row['least']:.2f}, {row['most']:.2f}]"
        typer.echo(f"{name:48} {row['tokens_per_second']:10,.0f} {span}")
    for key, value in result.items():
        if key not in ("candidates", "options", "benchmark", "baseline"):
            typer.echo(f"{key}: {value}")
