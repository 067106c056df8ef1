"""``redraft compare``: train diffusion and autoregressive models on the same data, and judge them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import DryRun, Json, Ray, log
from redraft.cli._options import Options
from redraft.cli._verbs import verb

if TYPE_CHECKING:
    from redraft.compare.record import Record
    from redraft.compare.study import Study


@verb(order=70, resumes=True)
def compare(
    *,
    study: Annotated[Path | None, typer.Argument(help="A study as TOML, such as those in recipes/compare.")] = None,
    given: Annotated[dict[str, Any], Options("redraft.compare.study:Study")],
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Checkpoint to start from; an autoregressive one is converted for the families without a checkpoint. "
            "NAME also stands for NAME-<family>; FAMILY=CHECKPOINT names one for a family; repeatable. 'scratch' "
            "trains from scratch. Unset, without a budget and a preset: the shipped models for this kind of data.",
        ),
    ] = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Train both kinds of model on your data and give a verdict.

    \b
    Examples:
      redraft compare --data my.jsonl --input question --target answer --out runs/verdict
      redraft compare --data my.jsonl --input question --target answer --minutes 30 --out runs/verdict
      redraft compare --data mt/tatoeba.en-de --input src --target ref --families autoregressive,masked \\
        --budget-tokens 15000000 --steps 4,8,16 --seeds 3 --price-per-hour 0.2 --out runs/tatoeba
      redraft compare --data my.jsonl --input question --target answer --out runs/verdict \\
        --service-endpoint https://api.example.com/v1 --service-model small --service-price-out 0.6
      redraft compare --data my.jsonl --input question --target answer --from runs/mine --out runs/verdict \\
        --families autoregressive,masked,block,hybrid
      redraft compare recipes/compare/tatoeba-en-de.toml --ray
      redraft compare --data my.jsonl --from runs/mine --base-dtype int8 --dry-run

    Every family gets the same budget; quality, latency, compute and memory are measured. Without a budget the study
    is planned to end within ten minutes (an hour, if checkpoints of 50M parameters or more are trained on a CPU).
    --dry-run prints the plan of data, families, tokens, minutes and memory; a budget of minutes is planned by short
    training runs.
    With --constraint the chosen settings are also measured under it: how many texts are valid with and without, and
    what that costs. OUT gets report.html, report.md and results.json. --ray computes the pieces of the study side by
    side, with the same results (docs/ray.md).
    """
    from redraft import config
    from redraft.compare.checkpoints import choose_bases
    from redraft.compare.study import Study

    bases = choose_bases(from_ or [], given, has_file=study is not None)
    if bases and not from_:
        log(f"starting from the shipped models {', '.join(Path(path).name for path in bases.values())}")
    given = {**given, **({"bases": bases} if bases else {})}
    wanted = Study.load(study, given) if study else config.build(Study, given, "compare")
    if dry_run:
        from redraft.compare.run import dry_run as plan

        return plan(wanted, log)
    return run(wanted, as_json, ray)


def run(study: Study, as_json: bool, ray: str | None = None) -> dict[str, Any]:
    """Run a study and print its verdict. The result is not ``ok`` if a model could not be trained.

    Args:
        ray: address of a Ray cluster; empty: a Ray of this machine; None: no Ray.
    """
    from redraft.compare.run import command_line
    from redraft.compare.run import run as measure
    from redraft.executors.local import Local
    from redraft.executors.ray import Ray as RayExecutor

    record = measure(study, log, command_line(), Local() if ray is None else RayExecutor(ray))
    failed = [one for one in record.missing if one.what.startswith("training ")]
    for one in failed:
        log(f"not trained: {one.what.removeprefix('training ')}: {one.why}")
    return {**show(record, Path(study.out), as_json), "ok": not failed}


def show(record: Record, out: Path, as_json: bool) -> dict[str, Any]:
    """Print the verdict of a study and where its report is; the result of the verb."""
    from redraft.compare.run import FILES

    files = {name: str(out / name) for name in FILES}
    if not as_json:
        verdict = record.verdict
        for line in dict.fromkeys([verdict.advice_text or verdict.headline, *(one.text for one in verdict.lines)]):
            typer.echo(line)
        typer.echo(f"Report: {files['report.html']}")
    return {**record.to_json(), "files": files}
