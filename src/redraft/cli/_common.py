"""What all verbs share: common options, and where they write."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from redraft.errors import UserError
from redraft.interop.ray_session import ADDRESS_HELP
from redraft.settings import DEVICE_HELP, DTYPE_HELP, Dtype

if TYPE_CHECKING:
    from rich.console import Console

    from redraft.model import Model

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Random seed; the same seed gives the same result.")]
Device = Annotated[str, typer.Option("--device", help=DEVICE_HELP)]
WeightType = Annotated[Dtype, typer.Option("--dtype", help=DTYPE_HELP)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan (memory, and time where known), and stop.")]
ModelName = Annotated[str, typer.Option("--model", help="Model folder or shipped checkpoint (see: redraft models).")]
Adapter = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="LoRA adapter to merge into the weights, in peft's format.")
]
Ray = Annotated[str | None, typer.Option("--ray", metavar="[ADDRESS]", help=ADDRESS_HELP)]
Pace = Annotated[
    float, typer.Option(min=0, help="Seconds to show each step in a terminal; not part of the measured time.")
]


def placement(model: Model) -> dict[str, str]:
    """The device of a model and the type of its weights, for the result of a verb."""
    network = model.network
    return {"device": str(network.device), "dtype": str(network.dtype).removeprefix("torch.")}


def log(text: str) -> None:
    """Print a progress line on stderr. If it can't be written (a full disk), the work goes on."""
    with suppress(OSError):
        typer.echo(text, err=True)


def screen(as_json: bool) -> Console:
    """The terminal: stdout, or stderr if stdout is reserved for JSON."""
    from rich.console import Console

    return Console(stderr=as_json, highlight=False)


def read_text(text: str) -> str:
    """The text of an option; ``-`` reads it from stdin, without the line ends at its end.

    A byte order mark is dropped, and the line ends of Windows become those of data files.

    Raises:
        UserError: stdin is not UTF-8 text.
    """
    return _from_stdin(sys.stdin.read).rstrip("\n") if text == "-" else text


def read_line() -> str | None:
    """The next line of stdin without its end, as ``read_text`` reads it; None at the end of stdin.

    Raises:
        UserError: stdin is not UTF-8 text.
    """
    line = _from_stdin(sys.stdin.readline)
    return line.removesuffix("\n") if line else None


def _from_stdin(read: Callable[[], str]) -> str:
    try:
        return read().replace("\r\n", "\n").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UserError(f"Standard input is not UTF-8 text: it holds byte 0x{byte:02x}.", "Save it as UTF-8.") from None


def listed(text: str) -> list[str]:
    """``"a, b,c"`` -> ``["a", "b", "c"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]
