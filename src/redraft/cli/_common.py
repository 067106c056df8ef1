"""What every verb shares: three options and the habit of writing logs to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]


def log(text: str) -> None:
    """A line for the person watching."""
    typer.echo(text, err=True)


def screen(as_json: bool) -> Console:
    """Where a person reads: stdout, or stderr while stdout is kept for JSON."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False)


def listed(text: str) -> list[str]:
    """``"a, b,c"`` -> ``["a", "b", "c"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]
