"""``redraft evaluate``: how good one model is on data of one's own, with intervals."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli import _decoding as how
from redraft.cli import _training as t
from redraft.cli._common import Constraint, Device, Json, Seed, constraints, log
from redraft.cli.generate import Drafter, pair, sampler_name, sampler_options
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.data.examples import Example
    from redraft.model import Model
    from redraft.settings import Settings

_BATCH_TOKENS = 8192  # of one scoring pass
_TELL_SECONDS = 5.0


def evaluate(
    model: Annotated[str, typer.Option(help="A model folder, or a shipped checkpoint (see: redraft models).")],
    data: Annotated[str, typer.Option(help="File, folder, set by name, or hub:owner/name.")],
    split: Annotated[str, typer.Option(help="Which split, for data that have splits.")] = "test",
    data_root: t.DataRoot = None,
    text: t.Text = None,
    input_: t.Input = None,
    target: t.Target = None,
    skip_bad_rows: t.SkipBadRows = False,
    rows: Annotated[
        int, typer.Option(min=1, help="Limit: most rows to use, drawn from all; the same every time.")
    ] = 500,
    task: Annotated[str | None, typer.Option(help="translation, qa ... Unset: recognised from the data.")] = None,
    max_new_tokens: how.MaxNewTokens = None,
    steps: how.Steps = None,
    sampler: how.SamplerName = None,
    option: how.Options = None,
    drafter: Drafter = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 takes the likeliest token. Unset: the model's own; 1 for plain text.")
    ] = None,
    candidates: how.Candidates = None,
    votes: Annotated[
        int,
        typer.Option(min=1, help="Solutions per prompt, of which the majority's answer counts; needs a temperature."),
    ] = 1,
    length: how.Length = None,
    start: how.Start = None,
    cache: how.Cache = None,
    cache_option: how.CacheOptions = None,
    weights: how.WeightsAs = None,
    constraint: Constraint = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts written at a time.")] = 32,
    samples: Annotated[int, typer.Option(min=2, help="Noise draws for the likelihood bound.")] = 4,
    out: Annotated[Path | None, typer.Option(help="JSON lines with every prompt, reference and text.")] = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
) -> dict[str, Any]:
    """Score one model on data of your own, with intervals.

    \b
    Examples:
      redraft evaluate --model translate-en-de-masked --data examples/data/tatoeba.en-de --input english --target german
      redraft evaluate --model runs/mine --data my.jsonl --input question --target answer --steps 8 --json
      redraft evaluate --model runs/stories --data notes.txt --rows 100
      redraft evaluate --model runs/mine --data my.jsonl --input question --target answer --constraint length=1-8

    Likelihood is exact, or a bound with its error; texts are scored by the metrics of the task. Intervals are 95 %
    bootstrap intervals over rows. Rows with the same input are one row with several references. Of plain text the
    beginning is given and the model goes on. Of a mixture (NAME.mix.toml) every task is scored by itself,
    on --rows of it, and the mean of their first metrics is given besides.
    """
    import redraft
    from redraft.compare.material import sample
    from redraft.config import parse_options
    from redraft.data.examples import Columns

    columns = Columns(text=text, input=input_, target=target)
    examples = _examples(data, data_root, split, columns if str(columns) else None, skip_bad_rows)
    loaded = redraft.load(model, device)
    sampler = pair(loaded, drafter, sampler)
    if loaded.conditional == (examples[0].prompt is None):
        wanted = "pairs: name --input and --target" if loaded.conditional else "plain text: name --text"
        raise UserError(f"'{model}' is a model of {wanted.split(':')[0]}, the data are not.", f"It needs {wanted}.")
    result: dict[str, Any] = {
        "model": model,
        "family": loaded.family_name,
        "parameters": loaded.parameters,
        "drafter": drafter,
        "data": data,
        "rows": min(rows, len(examples)),
        "device": str(loaded.network.device),
        "seed": seed,
        "likelihood": _likelihood(loaded, sample(examples, rows), samples, seed),
    }
    tasks: dict[str, list[Example]] = {}
    for example in examples:
        tasks.setdefault(example.task, []).append(example)
    settings = loaded.settings(
        max_new_tokens=max_new_tokens,
        sampler=sampler,
        steps=steps,
        options=parse_options(option or [], "--option") or None,
        temperature=temperature if loaded.conditional or temperature is not None else 1.0,
        candidates=candidates,
        length=length,
        start=start,
        cache=cache,
        cache_options=parse_options(cache_option or [], "--cache-option") or None,
        weights=weights,
        constraint=constraints(constraint) or None,
        seed=seed,
    )
    if votes > 1 and not settings.temperature:
        raise UserError(
            f"{votes} votes at temperature 0 are one vote.",
            "Give --temperature, for example 0.7, or leave out --votes.",
        )
    if len(tasks) < 2:
        found, lines = _quality(loaded, examples, rows, task, settings, votes, batch_size)
        result |= found
    else:
        several, lines = _several(loaded, tasks, rows, task, settings, votes, batch_size, samples)
        result |= several
    if out is not None:
        _write(out, lines)
    if not as_json:
        _show(result)
    return result


def _examples(source: str, root: str | None, split: str, columns: Any, skip_bad_rows: bool) -> Sequence[Example]:
    """One split of a source that has splits, else all its rows."""
    from redraft.data.examples import SPLITS, load, read, resolve
    from redraft.errors import suggest

    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'.", suggest(split, SPLITS))
    whole = set(resolve(source, root)) <= {""}
    if whole:
        found = read(source, columns, data_root=root, skip_bad_rows=skip_bad_rows)
    else:
        found = getattr(load(source, columns, data_root=root, skip_bad_rows=skip_bad_rows), split)
    for bad in found.skipped:
        log(f"left out {bad.where}: {bad.reason}")
    if not found:
        raise UserError(f"'{source}' has no rows in its {split} split.", "Name another by --split.")
    return found


def _likelihood(model: Model, examples: Sequence[Example], samples: int, seed: int) -> dict[str, Any]:
    from redraft.data.loader import batches, tokenise
    from redraft.likelihood import bound

    length = model.room - 1  # a window's <bos>
    rows = batches(tokenise(examples, model.tokenizer), model.tokenizer, length, max(_BATCH_TOKENS, length + 1))
    found = bound(model.network, rows, model.family.objective(), model.spec, samples, seed, model.network.device)
    return {
        "is_bound": found.is_bound,
        "nats_per_token": found.nats_per_token,
        "nats_per_token_error": found.nats_per_token_stderr,
        "bits_per_byte": found.bits_per_byte,
        "bits_per_byte_error": found.bits_per_byte_stderr,
        "tokens": found.tokens,
    }


def _several(
    model: Model,
    tasks: Mapping[str, list[Example]],
    rows: int,
    task: str | None,
    settings: Settings,
    votes: int,
    batch_size: int,
    samples: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Every task of a mixture by itself, and the mean of their first metrics."""
    from statistics import fmean

    from redraft.compare.material import sample
    from redraft.tasks import choose

    if task is not None:
        raise UserError(f"these data are of {len(tasks)} tasks, not of '{task}' alone.", "Leave --task out.")
    found: dict[str, Any] = {}
    lines: list[dict[str, Any]] = []
    for name, examples in tasks.items():
        log(f"task {name}")
        likelihood = _likelihood(model, sample(examples, rows), samples, settings.seed)
        quality, texts = _quality(model, examples, rows, choose(examples).name, settings, votes, batch_size)
        found[name] = {"rows": min(rows, len(examples)), "likelihood": likelihood, **quality}
        lines += [{"task": name, **text} for text in texts]
    first = [next(iter(part["metrics"].values()))["value"] for part in found.values()]
    return {"tasks": found, "mean": fmean(first)}, lines


def _quality(
    model: Model,
    examples: Sequence[Example],
    rows: int,
    task: str | None,
    settings: Settings,
    votes: int,
    batch_size: int,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write a text for every prompt and score them by the metrics of the task: what came of it, and the texts."""
    import dataclasses
    from operator import attrgetter

    from redraft.compare import stats
    from redraft.compare.material import items
    from redraft.tasks import choose, vote

    asked = items(examples, model.tokenizer, rows, model.conditional, settings.max_new_tokens)
    chosen = choose(examples, task)
    begin = time.perf_counter()
    told = begin

    def tell(done: int) -> None:
        nonlocal told
        if time.perf_counter() - told > _TELL_SECONDS:
            told = time.perf_counter()
            log(f"{done} of {len(prompts)} texts written")

    heads = [model.prompt_ids(item.prompt) for item in asked]  # rows may have empty prompts
    prompts = [head for head in heads for _ in range(votes)]
    written = model.generate(prompts, batch_size=batch_size, on_batch=tell, **dataclasses.asdict(settings))
    seconds = time.perf_counter() - begin
    texts = [vote(written[at : at + votes], attrgetter("text")) for at in range(0, len(written), votes)]
    lines = [
        {"prompt": item.prompt, "references": item.references, "text": found.text, "nfe": found.nfe}
        for item, found in zip(asked, texts, strict=True)
    ]
    metrics = {}
    for metric in chosen.task.metrics():
        score = metric.score([found.text for found in texts], [item.references for item in asked])
        around = stats.interval(score.stats[None], metric.combine)
        metrics[metric.name] = {"value": around.value, "low": around.low, "high": around.high, "label": metric.label}
    tokens, passes = sum(len(found.ids) for found in written), sum(found.nfe for found in written)
    figures = {
        "task": chosen.name,
        "task_reason": chosen.reason,
        "inputs": len(asked),
        "metrics": metrics,
        "sampler": sampler_name(model.method(settings).sampler),
        "sampler_options": sampler_options(model.method(settings).sampler),
        "temperature": settings.temperature,
        "weights": settings.weights,
        "cache": settings.cache,
        "cache_options": dict(settings.cache_options),
        "constraint": dict(settings.constraint),
        "max_new_tokens": settings.max_new_tokens,
        "votes": votes,
        "nfe": passes / len(texts),
        "tokens_per_pass": tokens / max(1, passes),
        "new_tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "answers_per_second": len(texts) / seconds,
        "batch_size": batch_size,
    }
    return figures, lines


def _write(out: Path, lines: Sequence[dict[str, Any]]) -> None:
    from redraft.files import write_atomically

    write_atomically(out, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))


def _show(result: dict[str, Any]) -> None:
    typer.echo(f"{result['model']} ({result['family']}, {result['parameters'] / 1e6:.2f}M), {result['rows']} rows")
    if "tasks" not in result:
        _show_task(result)
        return
    for name, found in result["tasks"].items():
        typer.echo(f"{name}, {found['rows']} rows")
        _show_task(found)
    typer.echo(f"mean of the first metrics: {result['mean']:.2f}")


def _show_task(result: dict[str, Any]) -> None:
    likelihood = result["likelihood"]
    sign = "<=" if likelihood["is_bound"] else "="
    for unit, name in (("nats_per_token", "nats/token"), ("bits_per_byte", "bits/byte")):
        error = f" +- {likelihood[f'{unit}_error']:.4f}" if likelihood["is_bound"] else ""
        typer.echo(f"  {name:12} {sign} {likelihood[unit]:.4f}{error}")
    for metric in result["metrics"].values():
        typer.echo(f"  {metric['label']:12} {metric['value']:.2f}  [{metric['low']:.2f}, {metric['high']:.2f}]")
    typer.echo(f"  {result['inputs']} texts as {result['task']}: {result['task_reason']}")
    typer.echo(
        f"  {result['sampler']}, {result['nfe']:.1f} passes a text, "
        f"{result['tokens_per_second']:.0f} tokens/s at batch {result['batch_size']}"
    )
