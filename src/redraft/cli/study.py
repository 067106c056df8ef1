"""``redraft study``: claims about diffusion language models as experiments, each with a verdict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from redraft.cli._common import Device, DryRun, Json, Ray, Seed, log
from redraft.cli._options import Options
from redraft.cli._verbs import verb
from redraft.errors import UserError, suggest

if TYPE_CHECKING:
    from redraft.study.experiment import Experiment
    from redraft.study.finding import StudyRecord

_ACTIONS = ("list", "run", "report")
_PAGE = "report.html"


@verb(order=72, resumes=True)
def study(
    action: Annotated[str, typer.Argument(metavar="list|run|report", help="What to do.")],
    claims: Annotated[
        list[str] | None, typer.Argument(help="Claims by name, a recipe's file, or 'all'.", show_default=False)
    ] = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the results. The same command continues.")] = Path("runs/study"),
    given: Annotated[dict[str, Any], Options("redraft.study.claim:Wanted")],
    records: Annotated[
        Path | None, typer.Option(help="report: also write the findings here, one JSON file for each claim.")
    ] = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    device: Device = "auto",
    seed: Seed = 0,
) -> dict[str, Any]:
    """Test claims about diffusion language models, on the shipped recipes or your data.

    \b
    Examples:
      redraft study list
      redraft study run steps short --data-root DATA
      redraft study run all --budget small --dry-run
      redraft study run steps --data my.jsonl --input question --target answer --out runs/mine
      redraft study report --out runs/study

    Each claim is a recipe (recipes/study) with a decision rule that is stated beforehand. It ends in a verdict: holds,
    in part, not seen, or open. Cells that are done are kept in OUT/study.sqlite, and shared between claims. --budget
    shipped takes the checkpoints that come with redraft (one seed: preliminary); small trains on two CPU cores, medium
    takes some hours, full a GPU. report writes one page over all claims.
    --seed has no effect: the seeds are 0, 1, 2 ...

    Raises:
        UserError: an unknown action or claim, or a claim that can't be run.
    """
    if action not in _ACTIONS:
        raise UserError(f"'{action}' is not list, run or report.", suggest(action, _ACTIONS))
    if action == "list":
        return _list(as_json)
    if action == "report":
        return _report(out, records, as_json)
    if not claims:
        raise UserError("No claim was named.", "Name one, or 'all'; redraft study list shows them.")
    experiments = _experiments(claims, given)
    if dry_run:
        return _plan(experiments, out, device, as_json)
    found = _run(experiments, out, device, ray)
    if not as_json:
        for one in found:
            typer.echo(f"{one.id}: {one.finding.verdict}\n  {one.finding.text}\n  rule: {one.rule}")
    page = _write_page(out)
    if not as_json:
        typer.echo(f"Report: {page}")
    return {"claims": {one.id: _short(one) for one in found}, "files": {_PAGE: str(page)}}


def _list(as_json: bool) -> dict[str, Any]:
    from redraft.study.claim import Claim, names

    found = {name: Claim.load(name) for name in names()}
    if not as_json:
        width = max(map(len, found))
        for name, claim in found.items():
            minutes = f"about {claim.minutes:g} minutes" if claim.minutes else f"needs {claim.needs or 'seconds'}"
            typer.echo(f"{name:{width}}  {claim.claim} ({minutes})")
    return {"claims": {name: {"claim": one.claim, "minutes": one.minutes} for name, one in found.items()}}


def _experiments(claims: list[str], given: dict[str, Any]) -> list[Experiment]:
    from redraft import config
    from redraft.study.claim import Wanted, names
    from redraft.study.experiment import Experiment

    wanted = config.build(Wanted, given, "command line")
    ids = names() if claims == ["all"] else list(dict.fromkeys(claims))
    return [Experiment(wanted.claim(name), wanted.data_root) for name in ids]


def _plan(experiments: list[Experiment], out: Path, device: str, as_json: bool) -> dict[str, Any]:
    from redraft import runtime
    from redraft.study.plan import plan, total
    from redraft.study.store import FILE, Store

    store = Store(out) if (out / FILE).is_file() else None
    plans = plan(experiments, runtime.device(device), store)
    if not as_json:
        for one in plans:
            typer.echo(one.line)
        typer.echo(f"about {total(plans):.0f} minutes in all, by the speed of this machine; a rough estimate")
    return {"claims": {one.claim: one.to_json() for one in plans}, "minutes": total(plans)}


def _run(experiments: list[Experiment], out: Path, device: str, ray: str | None) -> list[StudyRecord]:
    from redraft import runtime
    from redraft.executors.local import Local
    from redraft.executors.ray import Ray as RayExecutor
    from redraft.study.cells.base import Bench
    from redraft.study.run import run

    own, more = experiments[0].claim.tasks.get("own"), ""
    if own is not None:
        names = {"data": own.source, "text": own.text, "input": own.input, "target": own.target}
        more = "".join(f" --{key} {value}" for key, value in names.items() if value)
    bench = Bench(log, out, runtime.device(device), experiments[0].data_root)
    return run(experiments, bench, more, Local() if ray is None else RayExecutor(ray))


def _report(out: Path, records: Path | None, as_json: bool) -> dict[str, Any]:
    from redraft.study.report import write_records

    page, found = _write_page(out), _found(out)
    if records is not None:
        write_records(found, records)
    if not as_json:
        for one in found:
            typer.echo(f"{one.id}: {one.finding.verdict}. {one.finding.text}")
        typer.echo(f"Report: {page}")
    return {"claims": {one.id: _short(one) for one in found}, "files": {_PAGE: str(page)}}


def _found(out: Path) -> list[StudyRecord]:
    from redraft.study.store import FILE, Store

    found = Store(out).findings() if (out / FILE).is_file() else []
    if not found:
        raise UserError(f"'{out}' holds no findings.", "Run redraft study run with this --out first.")
    return found


def _write_page(out: Path) -> Path:
    from redraft.compare.report import render_html
    from redraft.files import write_atomically
    from redraft.study.report import report

    write_atomically(out / _PAGE, render_html(report(_found(out))))
    return out / _PAGE


def _short(one: StudyRecord) -> dict[str, Any]:
    """A finding for ``--json``."""
    return {"verdict": one.finding.verdict, "text": one.finding.text, "rule": one.rule, "preliminary": one.preliminary}
