"""``redraft infill``: fill the holes of a text."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, ModelName, Seed, WeightType, placement, read_text
from redraft.cli._decoding import NOT_FOR_HOLES, Infilling, resolved
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.options import echo

if TYPE_CHECKING:
    from redraft.generation.run import Generation
    from redraft.model import Model


@verb(order=30)
def infill(
    *,
    model: ModelName,
    text: Annotated[
        str,
        typer.Option(
            help="Text with holes: [[3]] is a hole of 3 tokens, [[1-8]] of 1 to 8, [[?]] of unknown size, [[ ]] of "
            "--hole tokens. - reads it from stdin."
        ),
    ],
    hole: Annotated[int, typer.Option(min=1, help="Tokens of a hole written as [[ ]].")] = 4,
    rewrite: Annotated[str | None, typer.Option(help="Part of --text to rewrite, instead of holes.")] = None,
    prompt: Annotated[str, typer.Option(help="The prompt that the text answers, for models of pairs.")] = "",
    prefix: Annotated[str, typer.Option(help="Text before --text; kept as it is.")] = "",
    suffix: Annotated[str, typer.Option(help="Text after --text; kept as it is.")] = "",
    given: Infilling,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Fill the holes of a text, using the text on both sides of each hole.

    \b
    Examples:
      redraft infill --model translate-en-de-masked --prompt "I am very tired." --text "Ich bin [[2]]."
      redraft infill --model translate-en-de-masked --prompt "I am tired." --text "Ich bin krank." --rewrite krank
      redraft infill --model runs/stories --text "The [[?]] sat on [[1-4]] mat." --suffix " It was a black cat."
      redraft infill --model runs/stories --text "[[6]] and that was the end." --steps 6 --json

    The rest of the text doesn't change. The model chooses the size of holes of unknown size.

    This needs a diffusion model: autoregressive models don't see the text after a hole. Options that you leave out take
    the values of the model's generation_config.json.
    """
    import redraft

    holes = read_text(text)
    _check(holes, rewrite)
    loaded = redraft.load(model, device, dtype)
    given["seed"] = seed
    begin = time.perf_counter()
    if rewrite is None:
        found = loaded.infill(re.sub(r"\[\[\s*\]\]", f"[[{hole}]]", holes), prompt, prefix, suffix, **given)
    else:
        found = _rewritten(loaded, (prefix, holes, suffix), rewrite, prompt, given)
    seconds = time.perf_counter() - begin
    used = _settings(loaded, given)
    if not as_json:
        typer.echo(found.text)
    return {
        "text": found.text,
        "nfe": found.nfe,
        "seconds": seconds,
        "log_probability": found.score,
        **used,
        "model": model,
        "family": loaded.family_name,
        **placement(loaded),
    }


def _settings(model: Model, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that were used, without those that the holes determine."""
    from redraft.generation.method import build_method

    settings = model.settings(**given)
    used = echo(resolved(settings, build_method(model, settings).sampler), "cli")
    return {name: value for name, value in used.items() if name not in NOT_FOR_HOLES}


def _check(text: str, rewrite: str | None) -> None:
    if rewrite is not None and re.search(r"\[\[.*?\]\]", text):
        raise UserError("--rewrite needs a text without holes.", "Leave out --rewrite, or remove the [[...]].")


def _rewritten(
    model: Model, texts: tuple[str, str, str], part: str, prompt: str, settings: dict[str, Any]
) -> Generation:
    """Rewrite the first occurrence of a part of a text, given as prefix, text and suffix.

    Raises:
        UserError: the text doesn't contain the part.
    """
    prefix, text, suffix = texts
    begin = text.find(part) if part else -1
    if begin < 0:
        raise UserError(f"--text doesn't contain '{part}'.", "Give --rewrite a part of it, letter by letter.")
    at = len(prefix) + begin
    return model.edit(prefix + text + suffix, (at, at + len(part)), prompt, **settings)
