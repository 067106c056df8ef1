"""``redraft evaluate``: how good one model is on given data, with intervals."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, ModelName, Seed, WeightType, log, placement
from redraft.cli._decoding import Decoding, Drafter
from redraft.cli._options import Options
from redraft.cli._verbs import verb

if TYPE_CHECKING:
    from redraft.evaluation.outcome import EvaluationResult, TaskResult


_WAYS = {"generate": "generation", "choose": "the likelihood of options", "infill": "infilling"}


@verb(order=60)
def evaluate(
    *,
    model: ModelName,
    given: Annotated[dict[str, Any], Options("redraft.evaluation.config:Evaluation")],
    how: Decoding,
    drafter: Drafter = None,
    as_json: Json = False,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Score one model on your data, with intervals.

    \b
    Examples:
      redraft evaluate --model translate-en-de-masked --data examples/data/tatoeba.en-de --input english --target german
      redraft evaluate --model runs/mine --data my.jsonl --input question --target answer --constraint length=1-8
      redraft evaluate --model base-masked --task sudoku:4x4 --rows 100
      redraft evaluate --model runs/mine --task humaneval --attempts 10 --temperature 0.8

    The likelihood is exact, or a bound with its error; generated texts are scored by the metrics of the task. Intervals
    are 95 % bootstrap intervals over rows. Rows with the same input become one row with several references. For plain
    text, the model continues the beginning of each text, by default at temperature 1. Each task of a mixture
    (NAME.mix.toml) is scored separately, on --rows of its rows, and the mean of their first metrics is added.

    --task also names a benchmark (redraft models --benchmarks), which has data, a prompt and metrics of its own, or one
    of its parts (glue:cola). --data replaces its data by your own in the same columns. Models of plain text are given
    examples in the prompt. With several --attempts, pass@k is reported. Programs run in a sandbox. Options that you
    leave out take the values of the model's generation_config.json.
    """
    import redraft
    from redraft.evaluation.config import Evaluation
    from redraft.evaluation.evaluate import evaluate as run
    from redraft.files import check_writable, write_atomically
    from redraft.loading import pair

    wanted = Evaluation(**given)
    if wanted.out is not None:
        check_writable(wanted.out)
    examples = wanted.examples(log)
    loaded = redraft.load(model, device, dtype)
    how["sampler"] = pair(loaded, drafter, how.get("sampler"))
    for name, value in wanted.defaults(loaded, model, examples).items():
        how.setdefault(name, value)
    found = run(loaded, examples, wanted, loaded.settings(**how, seed=seed), log)
    result = {
        "model": model,
        "family": loaded.family_name,
        "parameters": loaded.network.parameter_count,
        "drafter": drafter,
        "data": wanted.data or list(wanted.sources),
        **placement(loaded),
        "seed": seed,
        **found.to_mapping(),
    }
    if wanted.out is not None:
        write_atomically(wanted.out, "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in found.texts))
    if not as_json:
        _show(f"{model} ({loaded.family_name}, {loaded.network.parameter_count / 1e6:.2f}M)", found)
    return result


def _show(title: str, found: EvaluationResult) -> None:
    typer.echo(f"{title}, {found.rows} rows")
    for name, result in found.tasks.items():
        if name:
            typer.echo(f"{name}, {result.rows} rows")
        _show_task(result)
    if len(found.tasks) > 1:
        typer.echo(f"mean of the first metrics: {found.mean:.2f}")


def _show_task(result: TaskResult) -> None:
    one = result.likelihood
    sign = "<=" if one.is_bound else "="
    for name, value, error in (
        ("nats/token", one.nats_per_token, one.nats_per_token_error),
        ("bits/byte", one.bits_per_byte, one.bits_per_byte_error),
    ):
        typer.echo(f"  {name:12} {sign} {value:.4f}" + (f" +- {error:.4f}" if one.is_bound else ""))
    for metric in result.metrics.values():
        typer.echo(f"  {metric.label:12} {metric.value:.2f}  [{metric.low:.2f}, {metric.high:.2f}]  {metric.signature}")
    if short := result.short:
        typer.echo(
            f"  of {short.items} short answers, below {short.below} tokens: {short.value:.2f}  "
            f"[{short.low:.2f}, {short.high:.2f}]"
        )
    if asked := result.benchmark:
        shots = f", {asked.shots} examples in the prompt" if asked.shots else ""
        typer.echo(f"  {asked.name}, version {asked.version}, answers by {_WAYS[asked.answering]}{shots}")
    if energy := result.energy:
        each = "" if energy.joules_per_token is None else f", {energy.joules_per_token:.3g} a token"
        typer.echo(f"  energy       {energy.joules:.4g} J{each}  ({energy.source})")
    if curve := result.frontier:
        for point in (*curve.points, curve.human):
            name = "human texts" if point.temperature is None else f"temperature {point.temperature:g}"
            typer.echo(
                f"  {name}: log-perplexity {point.log_perplexity:.3f} under {curve.judge}, {point.entropy:.3f} bits"
            )
    typer.echo(f"  {result.inputs} texts as {result.task}: {result.task_reason}")
    typer.echo(
        f"  {result.settings['sampler']}, {result.nfe:.1f} passes per text, "
        f"{result.tokens_per_second:.0f} tokens/s at batch {result.batch_size}"
    )
