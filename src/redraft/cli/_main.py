"""The ``redraft`` command: finds the file of a verb, runs it, and turns a user's mistake into one line.

A verb returns its result as a mapping. With ``--json`` that mapping is the only thing on stdout; whatever else is
printed meanwhile goes to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from redraft.errors import UserError, suggest

VERBS = (
    "demo",
    "generate",
    "infill",
    "train",
    "finetune",
    "evaluate",
    "compare",
    "tune",
    "serve",
    "chat",
    "bench",
    "models",
    "convert",
    "doctor",
)
_RESUMED = ("demo", "train", "finetune", "compare", "tune")  # verbs that go on where they were stopped
_BAD_INPUT, _INTERRUPTED = 2, 130
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Verbs(TyperGroup):
    """Imports the file of a verb when that verb is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return command(cmd_name) if cmd_name in VERBS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in VERBS and not args[0].startswith("-"):
            raise UserError(f"unknown command '{args[0]}'.", suggest(args[0], VERBS))
        return super().resolve_command(ctx, args)


def command(verb: str) -> Any:
    """The command of a verb, made from the function of that name in the file of that name."""
    module = importlib.import_module(f"redraft.cli.{verb}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(verb)(getattr(module, verb))
    return get_command(app)


def _version(wanted: bool) -> None:
    if wanted:
        from redraft import __version__

        typer.echo(f"redraft {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train, fine-tune, sample and compare diffusion and autoregressive language models.

    \b
    Start here:
      redraft demo                     shipped models at work, in a few minutes
      redraft generate --help          every command explains itself, with examples
      redraft compare --data my.jsonl --input question --target answer

    Every command takes --json (one JSON object on stdout), --seed and --device.
    """


def main(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0: done. 1: a bug, or a verb that checks things and found one broken (``ok`` of its result is False). 2: a mistake
    that the user can mend. 130: Ctrl-C.
    """
    arguments = list(argv) or ["--help"]
    as_json = "--json" in arguments
    app = typer.Typer(cls=Verbs, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_root)
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = get_command(app).main(arguments, prog_name="redraft", standalone_mode=False)
        if result == _INTERRUPTED:  # typer turns Ctrl-C within a verb into this
            return _interrupted(arguments)
        if as_json and isinstance(result, dict):
            typer.echo(json.dumps(_strict(result), ensure_ascii=False))
        sys.stdout.flush()
        if isinstance(result, dict):
            return int(result.get("ok") is False)
        return result if isinstance(result, int) else 0
    except UserError as error:
        return _refuse(error.what, error.remedy, as_json)
    except typer.TyperException as error:
        return _refuse(_sentence(_told(error)), f"See: redraft {_verb(arguments)}--help", as_json)
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except BrokenPipeError:
        # The reader (head, less) has gone. Python would complain once more when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in _FULL:
            raise
        place = f" while writing {error.filename}" if error.filename else ""
        return _refuse(f"no room left on the disk{place}.", "Free some space and run the same command again.", as_json)


def _strict(value: Any) -> Any:
    """The same without infinities and NaN, which strict readers of JSON refuse: they become null."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interrupted(arguments: Sequence[str]) -> int:
    if arguments[0] in _RESUMED:
        typer.echo("stopped. The same command goes on from here.", err=True)
    return _INTERRUPTED


def _refuse(what: str, remedy: str, as_json: bool) -> int:
    message = " ".join(f"error: {what} {remedy}".split())
    typer.echo(message, err=True)
    if as_json:
        with contextlib.suppress(OSError):
            typer.echo(json.dumps({"error": {"what": what, "remedy": remedy}}, ensure_ascii=False))
    return _BAD_INPUT


def _told(error: Any) -> str:
    """What typer says of a mistake. Instead of an option that isn't there, those may be meant that are spelt alike, and
    those that are explained by its name."""
    if getattr(error, "possibilities", None) is not None and error.ctx is not None:
        word = error.option_name.lstrip("-")
        about = [(one.opts[0], getattr(one, "help", None) or "") for one in error.ctx.command.params]
        explained = [name for name, text in about if word in re.findall(r"\w+", text.lower())]
        error.possibilities = sorted({*error.possibilities, *explained})
    return str(error.format_message())


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _verb(arguments: Sequence[str]) -> str:
    return f"{arguments[0]} " if arguments[0] in VERBS else ""


def run() -> None:
    """Entry point of the ``redraft`` script."""
    # Read when torch is loaded. Threads that spin while they wait make short passes ten times slower on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # oneDNN keeps a compiled product for every shape it meets, up to 1,024 unless told otherwise: with batches of ever
    # new shapes that is half a gigabyte, and it looks like a leak.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    sys.exit(main(sys.argv[1:]))
