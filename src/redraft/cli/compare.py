"""``redraft compare``: is a diffusion language model right for these data? Both are trained, measured and judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from redraft.cli import _training as t
from redraft.cli._common import Constraint, Device, Json, constraints, listed, log
from redraft.errors import UserError

if TYPE_CHECKING:
    from redraft.compare.study import Study

_SCRATCH = "scratch"
_BASES = {True: "pairs", False: "base"}  # the shipped models for inputs and targets, and those for plain text
_BUDGETS = ("budget_tokens", "passes", "minutes")

_N = TypeVar("_N", int, float)


def compare(
    study: Annotated[Path | None, typer.Argument(help="A study as TOML, as under recipes/compare.")] = None,
    data: t.Data = None,
    text: t.Text = None,
    input_: t.Input = None,
    target: t.Target = None,
    data_root: t.DataRoot = None,
    skip_bad_rows: t.SkipBadRows = False,
    families: Annotated[str | None, typer.Option(help="The first is the baseline: autoregressive,masked.")] = None,
    from_: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="Fine-tune this checkpoint; NAME also stands for NAME-<family>; repeat for more. scratch: none. "
            "Unset, and with no budget and no preset: the shipped pair for this kind of data.",
        ),
    ] = None,
    budget_tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens of each model.")] = None,
    passes: Annotated[float | None, typer.Option(min=0, help="Instead: passes over the training rows.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Instead: wall clock of the whole study.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each family; one is preliminary.")] = None,
    steps: Annotated[str | None, typer.Option(help="Denoising steps to try: 1,4,16.")] = None,
    samplers: Annotated[str | None, typer.Option(help="Samplers of diffusion families to try.")] = None,
    blocks: Annotated[str | None, typer.Option(help="Block lengths to try; 0 is none.")] = None,
    candidates: Annotated[str | None, typer.Option(help="Numbers of output lengths to try.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens to write.")] = None,
    network: Annotated[str | None, typer.Option(help="transformer, cross_attention (see: docs/choosing.md).")] = None,
    preset: Annotated[str | None, typer.Option(help="Shape of the networks (see: redraft models).")] = None,
    task: Annotated[str | None, typer.Option(help="translation, qa ... Unset: recognised from the data.")] = None,
    margin: Annotated[float | None, typer.Option(min=0, help="Largest difference that doesn't matter.")] = None,
    test_rows: Annotated[int | None, typer.Option(min=2, help="Most test rows.")] = None,
    constraint: Constraint = None,
    price_per_hour: Annotated[float | None, typer.Option(min=0, help="Of this machine, for cost.")] = None,
    rival_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Also ask this service (OpenAI's interface); key: REDRAFT_RIVAL_KEY."),
    ] = None,
    rival_model: Annotated[str | None, typer.Option(metavar="NAME", help="Its model.")] = None,
    rival_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="instruction, shots, price_in, price_out, concurrency ...; repeatable."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="An option of [train] for all; repeatable.")
    ] = None,
    dropout: Annotated[
        str | None,
        typer.Option(
            metavar="RATES",
            help="0.1,0.3: train every model at each, within --minutes or at the whole budget each time; "
            "a family's best on validation rows counts.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the report; the same command goes on where it stopped.")] = Path(
        "comparison"
    ),
    as_json: Json = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same study.")] = None,
    device: Device = "auto",
) -> dict[str, Any]:
    """Train both kinds of model on your data and give a verdict.

    \b
    Examples:
      redraft compare --data my.jsonl --input question --target answer --out runs/verdict
      redraft compare --data my.jsonl --input question --target answer --minutes 30 --out runs/verdict
      redraft compare --data mt/tatoeba.en-de --input src --target ref --families autoregressive,masked \\
        --budget-tokens 15000000 --steps 4,8,16 --seeds 3 --price-per-hour 0.2 --out runs/tatoeba
      redraft compare --data my.jsonl --input question --target answer --out runs/verdict \\
        --rival-endpoint https://api.example.com/v1 --rival-model small --rival-option price_out=0.6

    Every family gets the same budget; quality, latency, compute and memory are measured. Without a budget the study
    is planned to end within ten minutes. With --constraint the chosen settings also write under it: how many texts are
    valid with and without, and what that costs. OUT gets report.html, report.md and results.json.
    """
    from redraft import config
    from redraft.data.examples import Columns, paired

    names = listed(families) if families else None
    if rival_endpoint is None and (rival_model or rival_option):
        raise UserError("a rival needs an address.", "Give --rival-endpoint.")
    rival = None
    if rival_endpoint is not None:
        rival = {
            "endpoint": rival_endpoint,
            "model": rival_model or "",
            **config.parse_options(rival_option or [], "rival"),
        }
    training = config.parse_options(set_ or [], "--set")
    given = t.table(
        data=data,
        text=text,
        input=input_,
        target=target,
        data_root=data_root,
        skip_bad_rows=skip_bad_rows,
        families=tuple(names) if names else None,
        budget_tokens=budget_tokens,
        passes=passes,
        minutes=minutes,
        seeds=seeds,
        steps=numbers(steps, "--steps"),
        samplers=tuple(listed(samplers)) if samplers else None,
        blocks=numbers(blocks, "--blocks"),
        candidates=numbers(candidates, "--candidates"),
        max_new_tokens=max_new_tokens,
        network=network,
        preset=preset,
        task=task,
        margin=margin,
        test_rows=test_rows,
        constraint=constraints(constraint) or None,
        price_per_hour=price_per_hour,
        rival=rival,
        train=training or None,
        dropouts=rates(dropout, "--dropout"),
        seed=seed,
        device=device,
        out=str(out),
    )
    own_terms = bool({"preset", *_BUDGETS} & given.keys() or study) or data is None
    columns = Columns(text=text, input=input_, target=target)
    default = "" if from_ or own_terms else _BASES[paired(str(data), columns, data_root)]
    if found := chosen_bases(from_, names or ["autoregressive", "masked"], default):
        given["bases"] = found
    return run(read(study, given), as_json)


def read(file: Path | None, given: dict[str, Any]) -> Study:
    """A study from a file and the options that win over it, or from options alone."""
    from redraft import config
    from redraft.compare.study import Study

    return Study.load(file, given) if file else config.build(Study, given, "compare")


def run(study: Study, as_json: bool) -> dict[str, Any]:
    """Carry out a study, telling whoever watches, and print its verdict."""
    from redraft.compare import runner

    found = runner.run(study, log, runner.command_line())
    files = {name: str(Path(study.out) / name) for name in ("report.html", "report.md", "results.json")}
    if not as_json:
        for line in dict.fromkeys([found["verdict"]["headline"], *(one["text"] for one in found["verdict"]["lines"])]):
            typer.echo(line)
        typer.echo(f"The report: {files['report.html']}")
    return {**found, "files": files}


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """``"1,4,16"`` -> (1, 4, 16).

    Raises:
        UserError: not whole numbers with commas between them.
    """
    return _numbers(int, text, option, "not whole numbers", "1,4,16")


def rates(text: str | None, option: str) -> tuple[float, ...] | None:
    """``"0.1,0.3"`` -> (0.1, 0.3).

    Raises:
        UserError: not numbers with commas between them.
    """
    return _numbers(float, text, option, "not numbers", "0.1,0.3")


def _numbers(read: Callable[[str], _N], text: str | None, option: str, wrong: str, like: str) -> tuple[_N, ...] | None:
    if text is None:
        return None
    try:
        return tuple(read(part) for part in listed(text))
    except ValueError:
        raise UserError(f"{option} {text}: {wrong}.", f"Write them like this: {option} {like}.") from None


def chosen_bases(named: Sequence[str] | None, families: Sequence[str], default: str) -> dict[str, str]:
    """What to fine-tune: what was named; else the shipped models ``default``-<family>, if all of them exist."""
    from redraft.shipped import zoo

    if named:
        return {} if list(named) == [_SCRATCH] else bases(named, families)
    if not default or any(f"{default}-{family}" not in zoo() for family in families):
        return {}
    log(f"starting from the shipped {default} models; --from {_SCRATCH} trains from nothing")
    return bases([default], families)


def bases(named: Sequence[str], families: Sequence[str]) -> dict[str, str]:
    """Family -> checkpoint to fine-tune. NAME is a checkpoint, or stands for the checkpoints NAME-<family>.

    Raises:
        UserError: there is neither.
    """
    from redraft.errors import suggest
    from redraft.loading import family_of, resolve
    from redraft.shipped import zoo

    found: dict[str, str] = {}
    for name in named:
        if name in zoo() or (Path(name) / "config.json").is_file():
            folder = resolve(name).resolve()
            found[family_of(folder)["name"]] = str(folder)
            continue
        for family in families:
            if f"{name}-{family}" not in zoo() and not (Path(f"{name}-{family}") / "config.json").is_file():
                what = f"--from {name}: there is no checkpoint of that name and no '{name}-{family}'."
                raise UserError(what, suggest(name, zoo()))
            found[family] = str(resolve(f"{name}-{family}").resolve())
    return found
