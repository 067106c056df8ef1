"""The ``redraft`` command: imports the module of a verb, runs the verb, and prints a user's mistake as one line.

A verb returns its result as a mapping. With ``--json`` this mapping is the only output on stdout; everything else goes
to stderr.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from redraft.cli._options import expand
from redraft.cli._verbs import find_verb, find_verbs, verb_names
from redraft.errors import UserError, suggest

_BAD_INPUT, _INTERRUPTED = 2, 130
# What is wrong with a path that the user gave, wherever it is used. A file that is missing may be a bug.
_PATHS = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Verbs(TyperGroup):
    """The group of all verbs. It imports the module of a verb when that verb is called, and all of them for help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs in the order of the help."""
        return [verb.name for verb in find_verbs()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of a verb, or None."""
        return command(cmd_name) if cmd_name in verb_names() else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of verbs, without building their options."""
        found = [TyperCommand(verb.name, help=verb.help) for verb in find_verbs()]
        limit = formatter.width - 6 - max(len(str(one.name)) for one in found)
        with formatter.section("Commands"):
            formatter.write_dl([(str(one.name), one.get_short_help_str(limit)) for one in found])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb that the arguments begin with.

        Raises:
            UserError: there is no such verb.
        """
        if args[0] not in verb_names() and not args[0].startswith("-"):
            raise UserError(f"Unknown command '{args[0]}'.", suggest(args[0], verb_names()))
        return super().resolve_command(ctx, args)


class VerbCommand(TyperCommand):
    """The command of a verb. An option whose metavar is in brackets may be given without a value, which is then empty:
    if it is the last word, or if another option follows.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments."""
        alone = {flag for one in self.params if str(one.metavar).startswith("[") for flag in one.opts}
        following = [*args, "-"][1:]
        args = [f"{a}=" if a in alone and b.startswith("-") else a for a, b in zip(args, following, strict=True)]
        return super().parse_args(ctx, args)


def command(name: str) -> Any:
    """Build the command of a verb, its options included.

    Raises:
        UserError: torchrun has started it in several processes, and it is made for one.
    """
    verb = find_verb(name)
    if not verb.processes and "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
        what = f"'redraft {name}' can't run in several processes of torchrun."
        raise UserError(what, "Start it without torchrun; train and finetune can.")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, cls=VerbCommand, help=verb.help)(expand(verb.run))
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
      redraft demo                     see shipped models generate, in a few minutes
      redraft generate --help          every command has a help page with examples
      redraft compare --data my.jsonl --input question --target answer

    Every command takes --json (one JSON object on stdout), --seed and --device.
    """


def main(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code.

    0: success. 1: a bug, or a failed check (``ok`` in the result of the verb is False). 2: an error that the user can
    correct. 130: interrupted with Ctrl-C.
    """
    arguments = list(argv) or ["--help"]
    as_json = "--json" in arguments
    app = typer.Typer(cls=Verbs, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.callback()(_root)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _unicode(stream):
            stream.reconfigure(errors="replace")  # a text that the terminal can't show is no reason to lose it
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = get_command(app).main(arguments, prog_name="redraft", standalone_mode=False, obj=arguments)
        if result == _INTERRUPTED:  # typer returns this after Ctrl-C within a verb
            return _interrupted(arguments)
        if as_json and isinstance(result, dict) and not _rank():
            typer.echo(json.dumps(_strict(result), ensure_ascii=not _unicode(sys.stdout)))
        sys.stdout.flush()
        if isinstance(result, dict):
            return int(result.get("ok") is False)
        return result if isinstance(result, int) else 0
    except UserError as error:
        return _refuse(error.what, error.remedy, as_json)
    except typer.TyperException as error:
        return _refuse(_sentence(_message(error)), f"See: redraft {_verb(arguments)}--help", as_json)
    except KeyboardInterrupt:
        return _interrupted(arguments)
    except BrokenPipeError:
        # The reader (head, less) has closed the pipe. Without this, Python reports it again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if (known := _os_error(error)) is None:
            raise
        return _refuse(known.what, known.remedy, as_json)


def _os_error(error: OSError) -> UserError | None:
    """An error of the operating system in words; None if it may be a bug."""
    if error.errno in _PATHS and error.filename:
        what = f"The path '{error.filename}' can't be used: {error.strerror}."
        return UserError(what, "Check the path and its permissions.")
    if error.errno in _FULL:
        place = f" while writing {error.filename}" if error.filename else ""
        return UserError(f"The disk is full{place}.", "Free some space and run the same command again.")
    return None


def _unicode(stream: Any) -> bool:
    """Can a stream write any character?"""
    return str(stream.encoding).lower().replace("-", "").startswith("utf") if stream.encoding else True


def _strict(value: Any) -> Any:
    """The same with null in place of infinities and NaN, which are not valid JSON."""
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _interrupted(arguments: Sequence[str]) -> int:
    if arguments[0] in verb_names() and find_verb(arguments[0]).resumes:
        typer.echo("Stopped. The same command continues from what has been saved.", err=True)
    return _INTERRUPTED


def _refuse(what: str, remedy: str, as_json: bool) -> int:
    message = " ".join(f"error: {what} {remedy}".split())
    typer.echo(f"rank {_rank()}: {message}" if _rank() else message, err=True)
    if as_json and not _rank():
        with contextlib.suppress(OSError):
            typer.echo(json.dumps({"error": {"what": what, "remedy": remedy}}, ensure_ascii=False))
    return _BAD_INPUT


def _rank() -> int:
    """The number of this process among several of torchrun; 0 writes to stdout."""
    return int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def _message(error: Any) -> str:
    """The message of a typer error. For an unknown option it suggests the options with a similar name, and those whose
    help text contains the name."""
    if getattr(error, "possibilities", None) is not None and error.ctx is not None:
        word = error.option_name.lstrip("-")
        helps = [(one.opts[0], one.help or "") for one in error.ctx.command.params if isinstance(one, TyperOption)]
        explained = [name for name, text in helps if word in re.findall(r"\w+", text.lower())]
        error.possibilities = sorted({*error.possibilities, *explained})
    return str(error.format_message())


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _verb(arguments: Sequence[str]) -> str:
    return f"{arguments[0]} " if arguments[0] in verb_names() else ""


def run() -> None:
    """Entry point of the ``redraft`` script."""
    # torch reads this when it is imported. Threads that spin while they wait make short forward passes ten times slower
    # on shared cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # oneDNN caches a compiled kernel for every shape of a matrix product, by default up to 1,024 kernels. With batches
    # of many shapes this takes half a gigabyte.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    sys.exit(main(sys.argv[1:]))
