"""``redraft generate``: write a text from a prompt, in sight."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli import _decoding as how
from redraft.cli._common import Adapter, Constraint, Device, Guidance, Guide, Json, Seed, constraints, screen
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.drafting import Drafting
    from redraft.model import Model
    from redraft.types import Sampler

Drafter = Annotated[
    str | None, typer.Option(help="A diffusion model that drafts for an autoregressive one (sampler draft_verify).")
]


def generate(
    model: Annotated[str, typer.Option(help="A model folder, or a shipped checkpoint (see: redraft models).")],
    prompt: Annotated[str, typer.Option(help="The prompt; - reads it from stdin.")],
    max_new_tokens: how.MaxNewTokens = None,
    steps: how.Steps = None,
    sampler: how.SamplerName = None,
    option: how.Options = None,
    adapter: Adapter = None,
    drafter: Drafter = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 takes the likeliest token.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Draw from the k likeliest tokens; 0 is off.")] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Draw from this much probability; 1 is off.")
    ] = None,
    candidates: how.Candidates = None,
    length: how.Length = None,
    start: how.Start = None,
    cache: how.Cache = None,
    cache_option: how.CacheOptions = None,
    weights: how.WeightsAs = None,
    constraint: Constraint = None,
    guidance: Guidance = None,
    guide: Guide = None,
    pace: Annotated[float, typer.Option(min=0, help="Seconds each step stays on a terminal; not counted.")] = 0.05,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> dict[str, Any]:
    """Write a text from a prompt. In a terminal you see the canvas fill; into a pipe goes the plain text.

    \b
    Examples:
      redraft generate --model translate-en-de-masked --prompt "The weather is fine today."
      redraft generate --model translate-en-de-masked --prompt "I am tired." --steps 4 --json
      redraft generate --model runs/mine --prompt "It was" --sampler threshold --option threshold=0.8
      redraft generate --model multiply-autoregressive --drafter multiply-masked --option block=32 \\
        --prompt "1 2 3 4 * 5 6 7 8"
      redraft generate --model runs/mine --prompt "When?" --constraint 'regex=[0-9]{4}-[0-9]{2}'
      redraft generate --model runs/mine --prompt "Who?" --guidance classifier_free --guide scale=2
      echo "Where is my hat?" | redraft generate --model translate-en-de-autoregressive --prompt -

    Constraints (redraft models lists them) always hold in the finished text; several hold together.

    Seconds and tokens per second are of the generation alone, without loading the model.
    """
    import redraft
    from redraft.config import parse_options

    text = sys.stdin.read().rstrip("\n") if prompt == "-" else prompt
    options = parse_options(option or [], "--option")
    loaded = redraft.load(model, device, adapter=adapter)
    sampler = pair(loaded, drafter, sampler)
    settings = loaded.settings(
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        steps=steps,
        options=options or None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        candidates=candidates,
        length=length,
        start=start,
        cache=cache,
        cache_options=parse_options(cache_option or [], "--cache-option") or None,
        weights=weights,
        constraint=constraints(constraint) or None,
        guidance=guidance,
        guide=parse_options(guide or [], "--guide") or None,
        seed=seed,
    )
    drafting = loaded.draft([loaded.asked(text)], settings)
    animated = not as_json and sys.stdout.isatty()
    seconds = run(drafting, pace, animated)
    found = drafting.results()[0]
    used = drafting.loop.method.sampler
    result = {
        "text": found.text,
        "new_tokens": len(found.ids),
        "nfe": found.nfe,
        "seconds": seconds,
        "tokens_per_second": len(found.ids) / seconds if seconds else 0.0,
        "tokens_per_pass": len(found.ids) / found.nfe,
        "drafted": drafting.loop.counter.drafted,
        "accepted": drafting.loop.counter.accepted,
        "sampler": sampler_name(used),
        "sampler_options": sampler_options(used),
        "drafter": drafter,
        "finish": found.finish,
        "log_probability": found.score,
        "max_new_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "weights": settings.weights,
        "cache": settings.cache,
        "cache_options": dict(settings.cache_options),
        "constraint": dict(settings.constraint),
        "guidance": settings.guidance,
        "seed": seed,
        "model": model,
        "adapter": adapter,
        "family": loaded.family_name,
        "parameters": loaded.parameters,
        "device": str(loaded.network.device),
    }
    if not as_json:
        typer.echo(found.text)
    if animated:
        typer.echo(
            f"{found.nfe} passes, {len(found.ids)} tokens, {seconds * 1000:.0f} ms, "
            f"{result['tokens_per_second']:.0f} tokens/s ({result['sampler']})",
            err=True,
        )
    return result


def run(drafting: Drafting, pace: float, animated: bool) -> float:
    """Run a generation, in sight or not, and return the seconds that it took.

    Raises:
        UserError: the canvas was never touched (nothing free to fill).
    """
    from redraft.cli._animation import Timed, watch

    if animated:
        return watch(drafting, screen(as_json=False), pace)
    timed = Timed(drafting)
    steps = sum(1 for _ in timed)
    if not steps:
        raise UserError("there was nothing to write.", "Raise --max-new-tokens.")
    return timed.seconds


def pair(model: Model, drafter: str | None, sampler: str | None) -> str | None:
    """Give the model its drafter, if one is named; the name of the sampler to use.

    Raises:
        UserError: another sampler than ``draft_verify``, which would leave the drafter idle, or one that can't draft.
    """
    if drafter is None:
        return sampler
    if sampler not in (None, "draft_verify"):
        raise UserError(f"sampler '{sampler}' has no use for a drafter.", "Leave out --drafter, or use draft_verify.")
    import redraft

    model.draft_with(redraft.load(drafter, str(model.network.device)))
    return "draft_verify"


def sampler_name(sampler: Sampler) -> str:
    """The name that finds this sampler again: that of its file."""
    from redraft.samplers import unwrapped

    return type(unwrapped(sampler)).__module__.rsplit(".", 1)[-1]


def sampler_options(sampler: Sampler) -> dict[str, Any]:
    """Its fields."""
    from redraft.samplers import unwrapped

    return vars(unwrapped(sampler))
