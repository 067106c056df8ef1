"""``redraft trace``: a page that replays a generation, or two beside each other."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, ModelName, Seed, WeightType, placement, read_text
from redraft.cli._decoding import Decoding, Drafter, resolved
from redraft.cli._verbs import verb
from redraft.config import parse_options

if TYPE_CHECKING:
    from redraft.model import Model
    from redraft.trace.recording import Recording


@verb(order=36)
def trace(
    *,
    model: ModelName,
    prompt: Annotated[str, typer.Option(help="The prompt; - reads it from stdin.")],
    out: Annotated[Path, typer.Option(help="The page that is written.")] = Path("trace.html"),
    given: Decoding,
    drafter: Drafter = None,
    beside: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Second model, replayed beside the first. Unset: the same.")
    ] = None,
    beside_set: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE",
            help="A generation setting of the second one: steps=4, sampler=threshold, options.threshold=0.8. "
            "Repeatable.",
        ),
    ] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Write a page that replays how a text was written: order, probabilities, rewriting, passes and time.

    \b
    Examples:
      redraft trace --model translate-en-de-masked --prompt "The weather is fine today." --steps 8
      redraft trace --model translate-en-de-masked --prompt "I am tired." --beside translate-en-de-autoregressive
      redraft trace --model runs/mine --prompt "It was" --steps 16 --beside-set sampler=threshold \\
        --beside-set options.threshold=0.8
      redraft trace --model multiply-autoregressive --drafter multiply-masked --option block=32 \\
        --prompt "1 2 3 4 * 5 6 7 8" --beside multiply-autoregressive

    The page is one file that opens in any browser, without a network. Options that you leave out take the values of
    the model's generation_config.json. The first replay starts after a warm-up, so that its times are comparable.
    """
    import redraft
    from redraft.files import check_writable, write_atomically
    from redraft.loading import pair
    from redraft.trace.page import render_page

    check_writable(out)
    question = read_text(prompt)
    loaded = redraft.load(model, device, dtype)
    given["sampler"] = pair(loaded, drafter, given.get("sampler"))
    found = [_record(loaded, model, question, given, seed)]
    if beside is not None or beside_set:
        other = loaded if beside is None else redraft.load(beside, device, dtype)
        options = _nested(parse_options(beside_set or [], "--beside-set"))
        found.append(_record(other, beside or model, question, options, seed))
    write_atomically(out, render_page(found))
    typer.echo(f"written to {out}", err=True)
    return {
        "file": str(out),
        "prompt": question,
        "seed": seed,
        "recordings": [_summary(one) for one in found],
        **placement(loaded),
    }


def _record(model: Model, name: str, prompt: str, given: dict[str, Any], seed: int) -> Recording:
    """Generate twice, first without a recording: the first run of a network on a machine is slower."""
    from redraft.generation.prompts import answerable_prompt_ids
    from redraft.trace.recording import record

    settings = model.settings(**given, seed=seed)
    ids = answerable_prompt_ids(model, prompt)
    for _ in model.start([ids], settings):
        pass
    run = model.start([ids], settings)
    used = resolved(settings, run.loop.method.sampler)
    facts = {"family": model.family_name, "sampler": str(used.sampler)}
    if used.steps is not None:
        facts["steps"] = str(used.steps)
    if used.cache != "none":
        facts["cache"] = str(used.cache)
    if used.options:
        facts["options"] = ", ".join(f"{name} {value}" for name, value in used.options.items())
    return record(run, name, prompt, facts)


def _nested(options: dict[str, Any]) -> dict[str, Any]:
    """``{"options.threshold": 0.8}`` -> ``{"options": {"threshold": 0.8}}``."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        table, dot, name = key.partition(".")
        if dot:
            found.setdefault(table, {})[name] = value
        else:
            found[key] = value
    return found


def _summary(one: Recording) -> dict[str, Any]:
    last = one.frames[-1]
    return {
        "model": one.title,
        "text": one.result.text,
        "new_tokens": len(one.result.ids),
        "nfe": last.passes,
        "seconds": last.seconds,
        "steps": len(one.frames) - 1,
        "order": None if one.order is None else asdict(one.order),
        **{name: value for name, value in one.facts.items() if name in ("family", "sampler")},
    }
