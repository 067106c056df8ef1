"""What every verb shares: three options and the habit of writing logs to stderr."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from redraft.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; all else goes to stderr.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Same seed, same result.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]


Constraint = Annotated[
    list[str] | None,
    typer.Option(
        "--constraint", metavar="KIND=TEXT", help="What the text must satisfy; =@FILE reads a file; repeat for more."
    ),
]
Guidance = Annotated[str | None, typer.Option("--guidance", metavar="NAME", help="See: redraft models.")]
Guide = Annotated[
    list[str] | None, typer.Option("--guide", metavar="KEY=VALUE", help="A field of the guidance; repeat for more.")
]


Adapter = Annotated[
    str | None, typer.Option(metavar="FOLDER", help="A LoRA adapter to fold into the model, in peft's layout.")
]


def constraints(pairs: list[str] | None) -> dict[str, str]:
    """``["regex=[0-9]+", "json_schema=@FILE"]`` -> mapping from kind to text; a file's last line end is left out.

    Raises:
        UserError: not KIND=TEXT, a kind named twice, a file that can't be read.
    """
    from pathlib import Path

    from redraft.registry import find

    found: dict[str, str] = {}
    for pair in pairs or []:
        kind, sep, text = pair.partition("=")
        if not sep or not kind:
            raise UserError(f"--constraint: '{pair}' is not KIND=TEXT.", "For example --constraint 'regex=[0-9]+'.")
        find("constraints", kind)
        if kind in found:
            raise UserError(f"--constraint: '{kind}' is named twice.", "Write it as one.")
        if text.startswith("@"):
            try:
                text = Path(text[1:]).read_text(encoding="utf-8").removesuffix("\n")  # which editors add
            except OSError as error:
                what = f"--constraint: can't read '{text[1:]}': {error.strerror}."
                raise UserError(what, "Behind @ stands the path of a file. Text itself goes without @.") from None
            except UnicodeDecodeError:
                raise UserError(f"--constraint: '{text[1:]}' is not UTF-8 text.", "Save it as UTF-8.") from None
        found[kind] = text
    return found


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
