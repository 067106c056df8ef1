"""``redraft infill``: fill the holes of a text."""

from __future__ import annotations

import re
import sys
import time
from typing import Annotated, Any

import typer

from redraft.cli import _decoding as how
from redraft.cli._common import Constraint, Device, Json, Seed, constraints
from redraft.errors import UserError


def infill(
    model: Annotated[str, typer.Option(help="A diffusion model: a folder, or a shipped checkpoint.")],
    text: Annotated[
        str,
        typer.Option(help="Text with holes: [[3]] three tokens, [[1-8]] one to eight, [[?]] unknown, [[ ]] --hole."),
    ],
    hole: Annotated[int, typer.Option(min=1, help="Tokens of a hole written [[ ]].")] = 4,
    rewrite: Annotated[str | None, typer.Option(help="A part of --text to be written anew, instead of holes.")] = None,
    prompt: Annotated[str, typer.Option(help="What the text answers, for models trained on pairs.")] = "",
    prefix: Annotated[str, typer.Option(help="What stands before --text, taken as it is.")] = "",
    suffix: Annotated[str, typer.Option(help="What stands after --text, taken as it is.")] = "",
    steps: Annotated[int | None, typer.Option(help="Denoising steps, at most the tokens in holes.")] = None,
    sampler: how.SamplerName = None,
    option: how.Options = None,
    start: Annotated[int | None, typer.Option(min=0, help="Cells a [[?]] begins with, where texts grow.")] = None,
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
      redraft infill --model translate-en-de-masked --prompt "I am tired." --text "Ich bin krank." --rewrite krank
      redraft infill --model runs/stories --text "The [[?]] sat on [[1-4]] mat." --suffix " It was a black cat."
      redraft infill --model runs/stories --text "[[6]] and that was the end." --steps 6 --json

    What stands stays as it is. Where a size is open, the model chooses it. - as the text reads it from stdin.
    Autoregressive models can't see what follows a hole.
    """
    import redraft
    from redraft.config import parse_options

    written = sys.stdin.read().rstrip("\n") if text == "-" else text
    if rewrite is not None and re.search(r"\[\[.*?\]\]", written):
        raise UserError("--rewrite is for a text without holes.", "Leave it out, or write no [[...]].")
    loaded = redraft.load(model, device)
    begin = time.perf_counter()
    given: dict[str, Any] = {
        "steps": steps,
        "sampler": sampler,
        "options": parse_options(option or [], "--option") or None,
        "temperature": temperature,
        "start": start,
        "constraint": constraints(constraint) or None,
        "seed": seed,
    }
    if rewrite is None:
        written = re.sub(r"\[\[\s*\]\]", f"[[{hole}]]", written)
        found = loaded.infill(written, prompt, prefix, suffix, **given)
    else:
        begin_at = written.find(rewrite) if rewrite else -1
        if begin_at < 0:
            raise UserError(f"the text has no part '{rewrite}' to rewrite.", "Give a part of it as it stands there.")
        at = len(prefix) + begin_at
        found = loaded.edit(prefix + written + suffix, (at, at + len(rewrite)), prompt, **given)
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
