"""``redraft infill``: fill the holes of a text."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated, Any

import typer

from redraft.cli._common import Constraint, Device, Json, Seed, constraints


def infill(
    model: Annotated[str, typer.Option(help="A diffusion model: a folder, or a shipped checkpoint.")],
    text: Annotated[str, typer.Option(help="Text with holes: [[3]] is one of three tokens, [[ ]] one of --hole.")],
    hole: Annotated[int, typer.Option(min=1, help="Tokens of a hole written [[ ]].")] = 4,
    prompt: Annotated[str | None, typer.Option(help="What the text answers, for models trained on pairs.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps, at most the tokens in holes.")] = None,
    sampler: Annotated[str | None, typer.Option(help="See: redraft models. Unset: the model's own.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="A field of the sampler; repeat for more.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 takes the likeliest token.")] = None,
    constraint: Constraint = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> dict[str, Any]:
    """Fill the holes of a text, looking at both sides of each.

    \b
    Examples:
      redraft infill --model translate-en-de-masked --prompt "I am very tired." --text "Ich bin [[2]]."
      redraft infill --model runs/stories --text "The [[ ]] sat on [[3]] mat."
      redraft infill --model runs/stories --text "[[6]] and that was the end." --steps 6 --json

    What stands stays as it is. - as the text reads it from stdin. Autoregressive models can't see what follows a hole.
    """
    import redraft
    from redraft.config import parse_options

    written = sys.stdin.read().rstrip("\n") if text == "-" else text
    loaded = redraft.load(model, device)
    begin = time.perf_counter()
    found = loaded.infill(
        re.sub(r"\[\[\s*\]\]", f"[[{hole}]]", written),
        prompt,
        steps=steps,
        sampler=sampler,
        options=parse_options(option or [], "--option") or None,
        temperature=temperature,
        constraint=constraints(constraint) or None,
        seed=seed,
    )
    seconds = time.perf_counter() - begin
    if not as_json:
        typer.echo(found.text)
    return {
        "text": found.text,
        "nfe": found.nfe,
        "seconds": seconds,
        "log_probability": found.score,
        "seed": seed,
        "model": model,
        "family": loaded.family_name,
        "device": str(loaded.network.device),
    }
