"""``redraft tune``: the fastest decoding configuration whose quality is within a tolerance of the best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, Json, ModelName, WeightType, log
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.files import folder_of_its_own

if TYPE_CHECKING:
    from redraft.tune.results import TuneResults


@verb(order=90, resumes=True)
def tune(
    *,
    model: ModelName,
    given: Annotated[dict[str, Any], Options("redraft.tune.study:TuneStudy")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change no model.")] = False,
    to: Annotated[Path | None, typer.Option(help="Write a tuned copy here, and leave the model unchanged.")] = None,
    as_json: Json = False,
    device: Device = "auto",
    dtype: WeightType = "auto",
) -> dict[str, Any]:
    """Find the fastest decoding configuration that is good enough, and make it the model's own.

    \b
    Examples:
      redraft tune --model runs/mine --data my.jsonl --input question --target answer --within 0.5
      redraft tune --model translate-en-de-masked --data mt/tatoeba.en-de --to runs/tuned --test
      redraft tune --model runs/mine --data dev.jsonl --all-rows --batch-sizes 32 --minutes 10 --dry-run

    Samplers, their options, steps, blocks, output lengths and cache policies are compared on validation rows; those
    that are unlikely to be chosen are eliminated early. The choice is written into the model's generation_config.json,
    which generate, evaluate and serve read. Test rows are used only with --test.
    """
    from redraft.files import check_writable
    from redraft.tune import report
    from redraft.tune.run import Tuning
    from redraft.tune.saving import check_place, save_choice
    from redraft.tune.study import TuneStudy

    study = TuneStudy(**given)
    check_writable(study.out, folder=True)
    place = None if dry_run else check_place(model, to)
    splits = study.load()
    for remark in (remark for _, part in splits.items() for remark in part.remarks()):
        log(remark)
    if (joined := study.joined(splits)) is not None:
        log(f"{len(splits.validation)} validation rows are too few: the {len(splits.test)} test rows are used, too")
        splits = joined
    with folder_of_its_own(study.out, f"Another process is tuning in '{study.out}'."):
        job = Tuning(model, study, splits.validation, device, log, dtype)
        found = job.run()
        if place is not None:
            save_choice(model, place, found.generation)
            found = found.with_changes(written=str(place))
        if study.test:
            found = found.with_changes(test=job.test(splits.test, found.find(found.winner).config))
        if (kept := report.keep_older(found, study.out)) is not None:
            log(f"the report of another tuning in this folder is kept in {kept}")
        report.write(found, study.out)
    if not as_json:
        _show(found)
        typer.echo(f"Report: {(study.out / 'tune.html').resolve()}")
    return found.to_mapping()


def _show(found: TuneResults) -> None:
    """The timed configurations, the choice, and its caveats."""
    from rich.table import Table

    from redraft.cli._common import screen
    from redraft.tune import report

    table = Table(box=None, header_style="dim")
    batches = found.batches
    for name in (found.label, "95 %", "passes", *(f"ms, batch {b}" for b in batches), "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("configuration", overflow="fold")
    timed = [one for one in found.settings if one.speed]
    for one in sorted(timed, key=lambda one: one.speed[0].p50):
        tags = report.tags(found, one)
        front = any(one.front[str(batch)] for batch in batches)
        table.add_row(
            f"{one.quality.value:.2f}",
            f"{one.quality.low:.1f}–{one.quality.high:.1f}",
            f"{one.nfe:.1f}",
            *(f"{1000 * timing.p50:.1f}" for timing in one.speed),
            f"{one.speed[-1].tokens_per_second:,.0f}",
            f"{'* ' if front else '  '}{one.id}{f' ({chr(44).join(tags)})' if tags else ''}",
            style="bold" if "chosen" in tags else None,
        )
    console = screen(as_json=False)
    console.print(table)
    console.print("* on the Pareto front: no timed configuration is as fast and better", style="dim")
    for line in (report.outcome(found), *report.caveats(found), report.held_out_sentence(found)):
        if line:
            typer.echo(line)
    settings = Path(found.written).resolve() / "generation_config.json" if found.written else None
    typer.echo(f"The choice is written to {settings}" if settings else "No model was changed.")
