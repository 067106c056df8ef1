"""``redraft serve``: models behind an HTTP interface that OpenAI's clients know, and a page to watch them at work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli._common import Device, Json, log
from redraft.errors import UserError


def serve(
    model: Annotated[
        list[str],
        typer.Option(
            metavar="[NAME=]MODEL", help="A folder, a shipped checkpoint, or owner/name of the hub; repeat for more."
        ),
    ],
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in: set --api-key then.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
    api_key: Annotated[
        list[str] | None, typer.Option(help="Ask for this key; repeat for more. Or set REDRAFT_API_KEY.")
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file of keys, one a line.")] = None,
    cors: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help="Let pages of this origin ask.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts (canvas rows) in a batch; memory grows with it.")] = 32,
    queue: Annotated[int, typer.Option(min=1, help="Texts that may wait; more are refused with 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(min=0, help="Of one answer; 0: what the context has room for.")] = 0,
    deadline: Annotated[float, typer.Option(min=0, help="Seconds a request may take, waiting included.")] = 300.0,
    patience: Annotated[float, typer.Option(min=0, help="Seconds a shutdown waits for what is under way.")] = 30.0,
    unload_after: Annotated[float, typer.Option(min=0, help="Minutes until an idle model is unloaded; 0: never.")] = 0,
    log_text: Annotated[bool, typer.Option("--log-text", help="Put prompts and answers into the log.")] = False,
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of the first request without one. Unset: fresh.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="Of weights: float32, bfloat16 (half the memory), float16.")] = "float32",
) -> dict[str, Any]:
    """Serve models over HTTP, and a page at / on which text comes into focus.

    \b
    Examples:
      redraft serve --model translate-en-de-masked --model translate-en-de-autoregressive
      redraft serve --model runs/mine --port 9000 --batch 64
      redraft serve --model runs/mine --host 0.0.0.0 --api-key-file keys.txt

    With OpenAI's client: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="any"). The rest is in docs/serving.md.
    """
    try:
        from redraft.serve.run import serve as run
        from redraft.serve.settings import Settings
    except ImportError as error:
        raise UserError(f"serving needs '{error.name}'.", "Install it: pip install 'redraft[serve]'.") from None
    given = Settings(
        models=tuple(model),
        host=host,
        port=port,
        api_keys=keys(api_key, api_key_file),
        cors=tuple(cors or ()),
        batch=batch,
        queue=queue,
        max_tokens=max_tokens,
        deadline=deadline,
        patience=patience,
        idle=unload_after * 60,
        seed=seed,
        log_text=log_text,
        device=device,
        dtype=dtype,
    )
    if not given.loopback and not given.api_keys:
        log(f"warning: {host} is open to other machines, and no --api-key is asked for")
    found: dict[str, Any] = {}

    def ready(address: str) -> None:
        found["url"] = address
        log(f"serving {', '.join(model)} at {address} (Ctrl-C ends)")

    run(given, ready)
    return {**found, "models": list(model)}


def keys(given: list[str] | None, file: Path | None) -> tuple[str, ...]:
    """API keys from options, a file and the environment.

    Raises:
        UserError: the file can't be read.
    """
    found = [*(given or []), *os.environ.get("REDRAFT_API_KEY", "").split()]
    if file is not None:
        try:
            found += file.read_text(encoding="utf-8").split()
        except OSError as error:
            raise UserError(f"can't read '{file}': {error.strerror}.") from None
    return tuple(dict.fromkeys(found))
