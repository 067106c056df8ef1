"""The findings of all claims as one HTML page, and as the Markdown page ``docs/claims.md``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from redraft.compare.format import clock
from redraft.compare.report import (
    Block,
    Caveats,
    Cell,
    Chart,
    Chip,
    Command,
    Curves,
    Facts,
    Headline,
    Legend,
    Mark,
    Panel,
    Panels,
    Report,
    Row,
    Scatter,
    Section,
    Series,
    Table,
    Tone,
)
from redraft.compare.report.charts import COLOURS
from redraft.errors import UserError
from redraft.files import write_atomically
from redraft.study.claim import Claim
from redraft.study.finding import VERDICTS, Figure, Line, Sheet, StudyRecord

TONES: dict[str, Tone] = {"holds": "good", "in part": "warn", "not seen": "bad", "open": "neutral"}
_INTRODUCTION = """\
A widely read summary of the field and the paper behind it ("Diffusion Language Models: An Experimental Analysis",
arXiv:2606.19475) state when a diffusion language model is worthwhile. Each of these claims is an experiment here, with
a decision rule that its recipe (`recipes/study`) states beforehand; one seed is called preliminary. The models are
small: a verdict holds for their size and data. Commands look for data in the folder REDRAFT_DATA; with
`--data my.jsonl --input question --target answer` they repeat a claim on your own data. How to run, read and add
claims: [study.md](study.md)."""


def report(records: Sequence[StudyRecord]) -> Report:
    """One page over all claims: the verdicts, then a section for each."""
    rows = [
        Row([one.id, one.claim, Cell(one.finding.verdict, tone=TONES[one.finding.verdict]), f"{one.seeds}"])
        for one in records
    ]
    overview = Section("Verdicts", [Table(["name", "claim", "verdict", "seeds"], rows)])
    return Report(
        title="Claims about diffusion language models",
        kicker="redraft study",
        lead="Every claim is an experiment with a decision rule that was stated beforehand.",
        sections=[overview, *(part for one in records for part in _sections(one))],
        footer="; ".join(f"{name}: {text}" for name, text in VERDICTS.items()) + ".",
    )


def _sections(one: StudyRecord) -> list[Section]:
    """The sections of a claim: verdict, rule and figures; each table; how it was made."""
    found = one.finding
    chips = [Chip(f"{one.seeds} seed{'s' if one.seeds > 1 else ''}", one.preliminary), Chip(f"budget {one.budget}")]
    chips += [Chip("preliminary", True)] if one.preliminary else []
    facts = {"says": one.source, "compared": one.compares, "decision rule": one.rule}
    blocks: list[Block] = [Headline(found.verdict, TONES[found.verdict], found.text, chips=chips), Facts(facts)]
    blocks += [Caveats(found.caveats)] if found.caveats else []
    blocks += [_panels(figure) for figure in found.figures]
    tables = [Section("", [_table(sheet)], lead=sheet.title) for sheet in found.tables]
    cost = {"cells": str(one.cells), "computed in": f"{clock(one.seconds)} (all cells, on the machine below)"}
    made: list[Block] = [Facts({**one.setup, **cost, "made": one.made}, "Settings and machine"), Command(one.command)]
    return [Section(f"{one.id}: {one.claim}", blocks), *tables, Section("", made)]


def _table(sheet: Sheet) -> Table:
    return Table(list(sheet.columns), [Row(list(row)) for row in sheet.rows])


def _panels(figure: Figure) -> Panels:
    series = [_series(number, line) for number, line in enumerate(figure.lines)]
    kinds: dict[str, type[Scatter | Curves]] = {"scatter": Scatter, "curves": Curves}
    chart: Chart = kinds[figure.kind](series, figure.x, figure.y, figure.title)
    legend = [Legend(line.name, number % COLOURS, number >= COLOURS) for number, line in enumerate(figure.lines)]
    return Panels([Panel(figure.title, chart)], legend)


def _series(number: int, line: Line) -> Series:
    marks = [
        Mark(one.x, one.y, one.low, one.high, f"{line.name} {one.label}".strip(), one.label, strong=True)
        for one in line.marks
    ]
    return Series(line.name, number % COLOURS, marks, hollow=number >= COLOURS)


# ---- docs/claims.md


def read_records(folder: Path) -> dict[str, StudyRecord]:
    """The recorded findings, ``FOLDER/CLAIM.json``, by claim.

    Raises:
        UserError: a file is no record.
    """
    return {
        path.stem: StudyRecord.of_json(path.read_text("utf-8"), str(path)) for path in sorted(folder.glob("*.json"))
    }


def write_records(records: Sequence[StudyRecord], folder: Path) -> None:
    """Write findings where ``docs/claims.md`` is made from.

    Raises:
        UserError: the folder is missing, or can't be written.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder '{folder}'.", "Make it first, or name benchmarks/study.")
    for one in records:
        write_atomically(folder / f"{one.id}.json", one.to_json())


def claims_page(claims: Sequence[Claim], rules: Mapping[str, str], records: Mapping[str, StudyRecord]) -> str:
    """The page ``docs/claims.md``: a verdict for every claim, then the numbers of those that were run.

    Args:
        rules: decision rules by claim.
    """
    verdicts = "\n\n".join(f"*{name}*: {text}." for name, text in VERDICTS.items())
    parts = ["# The claims, one by one", _INTRODUCTION, verdicts]
    rows = ["| claim | verdict | what was measured | command |", "|---|---|---|---|"]
    rows += [_row(claim, records.get(claim.id)) for claim in claims]
    parts.append("\n".join(rows))
    for claim in claims:
        parts += _details(claim, rules[claim.id], records.get(claim.id))
    parts.append("This page is made from `benchmarks/study` by `python -m tests.docs.test_claims_page`.")
    return "\n\n".join(parts) + "\n"


def _row(claim: Claim, one: StudyRecord | None) -> str:
    if one is None:
        return f"| {_cell(claim.claim)} | open | {_cell(_unrun(claim))} | `redraft study run {claim.id}` |"
    return f"| {_cell(one.claim)} | {_verdict(one)} | {_cell(one.finding.text)} | `{one.command}` |"


def _verdict(one: StudyRecord) -> str:
    return f"{one.finding.verdict} (one seed: preliminary)" if one.preliminary else one.finding.verdict


def _unrun(claim: Claim) -> str:
    needs = f"it needs {claim.needs}" if claim.needs else f"about {claim.minutes:g} minutes on two idle cores"
    return f"No run is recorded yet ({needs})."


def _details(claim: Claim, rule: str, one: StudyRecord | None) -> list[str]:
    """The section of a claim: the rule, the numbers if it was run, and what was known before."""
    verdict = f"**{_verdict(one)}**. {one.finding.text}" if one else f"**open**. {_unrun(claim)}"
    facts = {"Says": claim.source, "Compared": claim.compares, "Decision rule": rule}
    if one is not None:
        seeds = "1 seed" if one.preliminary else f"{one.seeds} seeds"
        facts |= {**one.setup, "recorded": f"{one.made}, budget {one.budget}, {seeds}, {one.cells} cells"}
    facts |= {"Other experiments, at other sizes": claim.earlier} if claim.earlier else {}
    parts = [f"## {claim.id}: {claim.claim}", verdict]
    parts.append("\n".join(f"- {name}: {text}" for name, text in facts.items()))
    if one is None:
        return parts
    parts += [_sheet(sheet) for sheet in one.finding.tables]
    return [*parts, f"```bash\n{one.command}\n```"]


def _sheet(sheet: Sheet) -> str:
    head = [f"| {' | '.join(map(_cell, sheet.columns))} |", "|---" * len(sheet.columns) + "|"]
    rows = (f"| {' | '.join(map(_cell, row))} |" for row in sheet.rows)
    return f"**{sheet.title}**\n\n" + "\n".join([*head, *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
