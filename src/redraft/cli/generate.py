"""``redraft generate``: generate text from a prompt, step by step in a terminal, or for every row of a data set."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import (
    Adapter,
    Device,
    Json,
    ModelName,
    Pace,
    Ray,
    Seed,
    WeightType,
    log,
    placement,
    read_text,
    screen,
)
from redraft.cli._decoding import Decoding, Drafter, resolved
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.errors import UserError
from redraft.options import echo

if TYPE_CHECKING:
    from redraft.generation.run import GenerationRun


@verb(order=20)
def generate(
    *,
    model: ModelName,
    prompt: Annotated[str | None, typer.Option(help="The prompt; - reads it from stdin.")] = None,
    given: Decoding,
    bulk: Annotated[dict[str, Any], Options("redraft.bulk.config:Bulk")],
    adapter: Adapter = None,
    drafter: Drafter = None,
    ray: Ray = None,
    pace: Pace = 0.05,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Generate text from a prompt, or for every row of a data set.

    A terminal shows every step; a pipe receives the plain text.

    \b
    Examples:
      redraft generate --model translate-en-de-masked --prompt "The weather is fine today."
      redraft generate --model translate-en-de-masked --prompt "I am tired." --steps 4 --json
      redraft generate --model runs/mine --prompt "It was" --sampler threshold --option threshold=0.8
      redraft generate --model multiply-autoregressive --drafter multiply-masked --option block=32 \\
        --prompt "1 2 3 4 * 5 6 7 8"
      redraft generate --model runs/mine --prompt "When?" --constraint 'regex=[0-9]{4}-[0-9]{2}'
      redraft generate --model runs/mine --prompt "Who?" --guidance classifier_free --guide scale=2
      redraft generate --model runs/mine --data questions.parquet --input question --out runs/answers
      echo "Where is my hat?" | redraft generate --model translate-en-de-autoregressive --prompt -

    Options that you leave out take the values of the model's generation_config.json.

    The finished text always satisfies the constraints (redraft models --constraints lists their kinds). Several can be
    combined.

    --data generates for every row and writes the same rows with the texts to --out. It reads and writes in portions, so
    that the data may be larger than the memory. The same command continues after any interruption. Rows that can't be
    used are left out and listed. --ray spreads the work over workers that hold a model each.

    Seconds and tokens per second cover generation alone, without loading the model.
    """
    given["seed"] = seed
    place = {"adapter": adapter, "drafter": drafter, "device": device, "dtype": dtype}
    if prompt is None:
        return _rows(model, bulk, given, ray, place, as_json)
    _check_no_rows({**bulk, **({} if ray is None else {"ray": ray})})
    return _one(model, prompt, given, place, pace, as_json)


def _one(
    model: str, prompt: str, given: dict[str, Any], place: dict[str, Any], pace: float, as_json: bool
) -> dict[str, Any]:
    """Generate for one prompt."""
    import redraft
    from redraft.generation.prompts import answerable_prompt_ids
    from redraft.loading import pair

    loaded = redraft.load(model, place["device"], place["dtype"], adapter=place["adapter"])
    given["sampler"] = pair(loaded, place["drafter"], given.get("sampler"))
    settings = loaded.settings(**given)
    drafting = loaded.start([answerable_prompt_ids(loaded, read_text(prompt))], settings)
    animated = not as_json and sys.stdout.isatty()
    result = {
        **_outcome(drafting, pace, animated),
        **echo(resolved(settings, drafting.loop.method.sampler), "cli"),
        "drafter": place["drafter"],
        "model": model,
        "adapter": place["adapter"],
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


def _check_no_rows(given: dict[str, Any]) -> None:
    """Check that no option of --data comes with a prompt.

    Raises:
        UserError: one does.
    """
    if wrong := next((name for name in given if name != "data_root"), None):
        raise UserError(f"--{wrong.replace('_', '-')} can't be combined with --prompt.", "Leave out one of them.")


def _rows(
    model: str, bulk: dict[str, Any], given: dict[str, Any], ray: str | None, place: dict[str, Any], as_json: bool
) -> dict[str, Any]:
    """Generate for every row of a data set.

    Raises:
        UserError: there is neither a prompt nor data; or as ``bulk.run.run``.
    """
    if "data" not in bulk:
        raise UserError("There is nothing to generate for.", "Give --prompt TEXT, or --data FILE --out FOLDER.")
    from redraft.bulk.config import Bulk
    from redraft.bulk.run import run as run_all

    found = run_all(Bulk(**bulk), model, given, log, ray, **place)
    if not as_json:
        typer.echo(f"{found.written:,} rows: {found.out}/rows")
    return {"model": model, **asdict(found)}


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
