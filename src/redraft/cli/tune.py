"""``redraft tune``: the quickest way of decoding whose quality is within a tolerance of the best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from redraft.cli import _training as t
from redraft.cli._common import Device, Json, listed, log
from redraft.errors import UserError


def tune(
    model: Annotated[str, typer.Option(help="A model folder, or a shipped checkpoint (see: redraft models).")],
    data: Annotated[
        str, typer.Option(help="File, folder, set by name, or hub:owner/name. Its validation rows are used.")
    ],
    within: Annotated[
        float, typer.Option(help="How far behind the best the choice may be, in units of the metric.")
    ] = 0.5,
    data_root: t.DataRoot = None,
    text: t.Text = None,
    input_: t.Input = None,
    target: t.Target = None,
    skip_bad_rows: t.SkipBadRows = False,
    all_rows: Annotated[bool, typer.Option("--all-rows", help="Every row of --data is validation data.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Most rows to use, drawn from all; the same every time.")] = 256,
    task: Annotated[str | None, typer.Option(help="translation, qa ... Unset: recognised from the data.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Most tokens to write. Unset: the model's own.")] = None,
    samplers: Annotated[str, typer.Option(help="Samplers to try, by comma. Unset: all that suit the model.")] = "",
    caches: Annotated[
        str, typer.Option(help="Caches to try, by comma. Unset: exact and, where it helps, others.")
    ] = "",
    batch_sizes: Annotated[str, typer.Option(help="Batch sizes to time; latency at the first decides.")] = "1,32",
    calls: Annotated[int, typer.Option(min=3, help="Timed calls of each setting.")] = 12,
    minutes: Annotated[float, typer.Option(min=0, help="End the search after so long; 0 lets it finish.")] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change no model.")] = False,
    to: Annotated[Path | None, typer.Option(help="Write a tuned copy here, and leave the model as it is.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Score the choice on the test split, once, at the end.")] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for tune.json and tune.html; the same command goes on there.")
    ] = Path("tuning"),
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the texts. Unset: the model's own.")] = None,
    device: Device = "auto",
) -> dict[str, Any]:
    """Find the quickest way of decoding that is good enough, and let the model use it from now on.

    \b
    Examples:
      redraft tune --model runs/mine --data my.jsonl --input question --target answer --within 0.5
      redraft tune --model translate-en-de-masked --data mt/tatoeba.en-de --to runs/tuned --test
      redraft tune --model runs/mine --data dev.jsonl --all-rows --batch-sizes 32 --minutes 10 --dry-run

    Samplers, their values, steps, blocks, output lengths and caches race each other on validation rows; those that are
    known to be of no use are taken out early. The choice is written into the model's generation_config.json, from which
    generate, evaluate and serve take it. Test rows are never looked at, but for --test.
    """
    from redraft.data.examples import Columns, load
    from redraft.tune import page, run

    place = None if dry_run else run.check_place(model, to)
    columns = Columns(text=text, input=input_, target=target)
    fractions = (0.0, 1.0, 0.0) if all_rows else (0.9, 0.05, 0.05)
    named = columns if str(columns) else None
    splits = load(data, named, data_root=data_root, fractions=fractions, skip_bad_rows=skip_bad_rows)
    if test and not splits.test:
        raise UserError(f"'{data}' has no test rows.", "Leave out --test or --all-rows.")
    job = run.Tuning(
        model,
        splits.validation,
        within,
        out,
        rows=rows,
        task=task,
        seed=seed,
        device=device,
        batches=_numbers(batch_sizes),
        calls=calls,
        minutes=minutes,
        max_new_tokens=max_new_tokens,
        samplers=tuple(listed(samplers)),
        caches=tuple(listed(caches)),
        tell=log,
    )
    found = job.run() | {"data": data, "written": None, "test": None}
    if place is not None:
        run.keep(model, place, found["generation"])
        found["written"] = str(place)
    if test:
        found["test"] = job.test(splits.test, found["winner"])
    run.write_result(found, out)
    if not as_json:
        _show(found, page.sentence(found), page.doubts(found), out)
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """``"1,32"`` -> numbers of at least 1."""
    try:
        found = tuple(int(part) for part in listed(text))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UserError(f"--batch-sizes: '{text}' is no list of numbers.", "For example 1,32.")
    return found


def _show(found: dict[str, Any], sentence: str, doubts: list[str], out: Path) -> None:
    """The front, the choice, and what to keep in mind."""
    from rich.table import Table

    from redraft.cli._common import screen

    table = Table(box=None, header_style="dim")
    batches = found["batches"]
    for name in (found["label"], "95 %", "passes", *(f"ms, batch {b}" for b in batches), "tokens/s"):
        table.add_column(name, justify="right")
    table.add_column("setting", overflow="fold")
    timed = [row for row in found["settings"] if row["speed"]]
    for row in sorted(timed, key=lambda row: row["speed"][0]["p50"]):
        value, speed = row["quality"], {one["batch"]: one for one in row["speed"]}
        tags = [
            word
            for word, name in (("chosen", "winner"), ("today", "own"), ("best", "best"))
            if found[name] == row["id"]
        ]
        front = any(row["front"][str(batch)] for batch in batches)
        table.add_row(
            f"{value['value']:.2f}",
            f"{value['low']:.1f}–{value['high']:.1f}",
            f"{row['nfe']:.1f}",
            *(f"{1000 * speed[b]['p50']:.1f}" for b in batches),
            f"{speed[batches[-1]]['tokens_per_second']:,.0f}",
            f"{'* ' if front else '  '}{row['id']}{f' ({chr(44).join(tags)})' if tags else ''}",
            style="bold" if "chosen" in tags else None,
        )
    console = screen(as_json=False)
    console.print(table)
    console.print("* nothing timed is as quick and better", style="dim")
    typer.echo(sentence)
    for note in doubts:
        typer.echo(note)
    if tested := found["test"]:
        gain = tested["against_own"]
        typer.echo(
            f"Test, {tested['rows']} rows: {tested['winner']['value']:.2f} {found['label']}, today's setting "
            f"{tested['own']['value']:.2f}, {gain['difference']:+.2f} [{gain['low']:+.2f}, {gain['high']:+.2f}]."
        )
    typer.echo(f"Written to {found['written']}." if found["written"] else "No model was changed.")
    typer.echo(f"See {out / 'tune.html'}.")
