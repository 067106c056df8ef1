"""``redraft generate``: generate text from a prompt, step by step in a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Adapter, Device, Json, ModelName, Pace, Seed, WeightType, placement, read_text, screen
from redraft.cli._decoding import Decoding, Drafter, pair, resolved
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.options import echo

if TYPE_CHECKING:
    from redraft.generation.run import GenerationRun


@verb(order=20)
def generate(
    *,
    model: ModelName,
    prompt: Annotated[str, typer.Option(help="The prompt; - reads it from stdin.")],
    given: Decoding,
    adapter: Adapter = None,
    drafter: Drafter = None,
    pace: Pace = 0.05,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Generate text from a prompt. A terminal shows every step; a pipe receives the plain text.

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

    Options that you leave out take the values of the model's generation_config.json.

    The finished text always satisfies the constraints (redraft models --constraints lists their kinds). Several can be
    combined.

    Seconds and tokens per second cover generation alone, without loading the model.
    """
    import redraft
    from redraft.generation.prompts import answerable_prompt_ids

    loaded = redraft.load(model, device, dtype, adapter=adapter)
    given["sampler"] = pair(loaded, drafter, given.get("sampler"))
    settings = loaded.settings(**given, seed=seed)
    drafting = loaded.start([answerable_prompt_ids(loaded, read_text(prompt))], settings)
    animated = not as_json and sys.stdout.isatty()
    result = {
        **_outcome(drafting, pace, animated),
        **echo(resolved(settings, drafting.loop.method.sampler), "cli"),
        "drafter": drafter,
        "model": model,
        "adapter": adapter,
        "family": loaded.family_name,
        "parameters": loaded.network.parameter_count,
        **placement(loaded),
    }
    if not as_json:
        typer.echo(result["text"])
    if animated:
        typer.echo(
            f"{result['nfe']} forward passes, {result['new_tokens']} tokens, {result['seconds'] * 1000:.0f} ms, "
            f"{result['tokens_per_second']:.0f} tokens/s ({result['sampler']})",
            err=True,
        )
    return result


def _outcome(drafting: GenerationRun, pace: float, animated: bool) -> dict[str, Any]:
    """Run a generation and return its text and measurements."""
    seconds = run(drafting, pace, animated)
    found = drafting.results()[0]
    return {
        "text": found.text,
        "new_tokens": len(found.ids),
        "nfe": found.nfe,
        "seconds": seconds,
        "tokens_per_second": len(found.ids) / seconds if seconds else 0.0,
        "tokens_per_pass": len(found.ids) / found.nfe,
        "drafted": drafting.loop.counter.drafted,
        "accepted": drafting.loop.counter.accepted,
        "finish": found.finish,
        "log_probability": found.score,
    }


def run(drafting: GenerationRun, pace: float, animated: bool) -> float:
    """Run a generation, animated or not, and return the seconds that it took.

    Raises:
        UserError: there was no position to fill.
    """
    from redraft.cli._animation import watch
    from redraft.trace.recording import Timed

    if animated:
        return watch(drafting, screen(as_json=False), pace)
    timed = Timed(drafting)
    steps = sum(1 for _ in timed)
    if not steps:
        raise UserError("There are no positions to fill.", "Raise --max-new-tokens.")
    return timed.seconds
