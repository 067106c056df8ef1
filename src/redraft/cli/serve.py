"""``redraft serve``: serve models over HTTP, with a web page that shows the generation."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import DryRun, Json, log
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.interop.ray_session import LOCAL
from redraft.options import declared
from redraft.serve.config import Replication, ServerConfig

if TYPE_CHECKING:
    from redraft.planning.serving import ServerPlan

_FIELDS = declared(ServerConfig)


@verb(order=100)
def serve(
    *,
    model: Annotated[
        list[str], typer.Option(metavar=_FIELDS["models"].metavar, help=f"{_FIELDS['models'].help} Repeatable.")
    ],
    api_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="An API key that requests must send, of at least 8 characters. Repeatable."),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with one API key per line. REDRAFT_API_KEY sets keys, too."),
    ] = None,
    cors: Annotated[
        list[str] | None, typer.Option(metavar=_FIELDS["cors"].metavar, help=f"{_FIELDS['cors'].help} Repeatable.")
    ] = None,
    given: Annotated[dict[str, Any], Options(ServerConfig, leave_out=("models", "cors"))],
    ray_serve: Annotated[
        str | None,
        typer.Option(
            metavar="[ADDRESS]",
            help="Serve with several processes of Ray Serve: on this machine, or in the cluster at ADDRESS (auto, or "
            "HOST:PORT), which goes on serving when the command has ended.",
        ),
    ] = None,
    spread: Annotated[dict[str, Any], Options(Replication)],
    dry_run: DryRun = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Serve models over HTTP with an API for OpenAI's clients, and a web page at / that shows each denoising step.

    \b
    Examples:
      redraft serve --model translate-en-de-masked --model translate-en-de-autoregressive
      redraft serve --model runs/mine --port 9000 --batch 64
      redraft serve --model runs/mine --host 0.0.0.0 --api-key-file keys.txt
      redraft serve --model runs/mine --replicas 2 --ray-serve
      redraft serve --model runs/mine --batch 64 --dry-run

    OpenAI's client connects with OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any"). See docs/serving.md.
    """
    config = ServerConfig(
        models=tuple(model), api_keys=read_keys(api_key, api_key_file), cors=tuple(cors or ()), **given
    )
    if not config.loopback and not config.api_keys:
        log(f"Warning: other machines can reach {config.host}, and no API key is required. Set --api-key.")
    run = None if dry_run else _server(spread, ray_serve, given)
    stays = bool(ray_serve) and ray_serve != LOCAL
    found: dict[str, Any] = {} if stays else {"memory": plan(config).to_json()}  # a cluster has memory of its own
    if run is None:
        return {**found, "models": list(model)}
    hint = "the cluster goes on serving" if stays else "Ctrl-C stops the server"

    def on_ready(address: str) -> None:
        found["url"] = address
        log(f"Serving {', '.join(model)} at {address} ({hint})")

    run(config, on_ready)
    return {**found, "models": list(model)}


def plan(config: ServerConfig) -> ServerPlan:
    """The memory of a server, which is printed. Nothing is loaded.

    Raises:
        UserError: there is no such model, or the memory doesn't suffice.
    """
    from redraft import runtime
    from redraft.planning.serving import require, serving
    from redraft.serve.model_pool import name_and_folder

    models = dict(map(name_and_folder, config.models))
    found = serving(models, runtime.device(config.device), config.dtype, config.batch)
    log(str(found))
    require(found)
    return found


def _server(
    spread: dict[str, Any], ray_serve: str | None, given: dict[str, Any]
) -> Callable[[ServerConfig, Callable[[str], None]], None]:
    """The function that runs a server. Its packages are an optional part of the installation.

    Raises:
        UserError: a package is missing, or there are options of Ray Serve without it.
    """
    replication = Replication(**spread)
    if ray_serve is None and spread:
        raise UserError(f"--{next(iter(spread))} needs --ray-serve.", "Add --ray-serve, or leave it out.")
    try:
        if ray_serve is not None:
            from redraft.serve.ray_serve import serve as replicated

            return partial(replicated, replication=replication, address=ray_serve, given=given)
        from redraft.serve.server import serve as run
    except ImportError as error:
        raise UserError(
            f"`redraft serve` needs the package '{error.name}'.", "Install it: pip install 'redraft[serve]'."
        ) from None
    return run


def read_keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    """API keys from the options, a file and the environment, without duplicates.

    A file or a variable without a key is an error: a server that was meant to ask for keys must not start without any.

    Raises:
        UserError: the file can't be read, or a source of keys has none.
    """
    keys = list(given or [])
    variable = os.environ.get("REDRAFT_API_KEY")
    if variable is not None:
        keys += _some(variable.split(), "REDRAFT_API_KEY", "Set a key, or unset the variable to serve without keys.")
    if file is not None:
        remedy = "Give a file with one key per line."
        try:
            text = file.read_text(encoding="utf-8-sig")
        except OSError as error:
            raise UserError(f"--api-key-file: can't read '{file}': {error.strerror}.", remedy) from None
        except UnicodeDecodeError:
            raise UserError(f"--api-key-file: '{file}' is not UTF-8 text.", remedy) from None
        keys += _some(text.split(), f"--api-key-file '{file}'", remedy)
    return tuple(dict.fromkeys(keys))


def _some(keys: list[str], source: str, remedy: str) -> list[str]:
    if not keys:
        raise UserError(f"{source} contains no API key.", remedy)
    return keys
