"""The chosen settings with the study's constraint and without it."""

from __future__ import annotations

from redraft.compare.format import seconds, shortened
from redraft.compare.record import Record
from redraft.compare.report import Cell, Content, Row, Section, Table
from redraft.compare.results import ConstrainedSetting, ConstraintStudy
from redraft.compare.sections.common import (
    INCONCLUSIVE,
    colour,
    difference_cell,
    interval_cell,
    row_kind,
    verdict_cell,
)


def table(record: Record) -> Section | None:
    """Validity, quality and latency, with and without."""
    found = record.constraint_study
    if found is None or not found.settings:
        return None
    name = record.task.label
    sizes = sorted({speed.batch for row in found.settings for speed in row.speed})
    columns = ["setting", "valid %\nwithout", "valid %\nwith", f"{name}\nwithout", f"{name}\nwith", "change, 95 %"]
    columns += ["against the\nbaseline, 95 %", "verdict", "forward\npasses"]
    columns += ["batch", "p50\nwith", "times\nwithout"] if sizes else []
    body = [Row(_cells(record, found, row, sizes), row_kind(record, row.setting)) for row in found.settings]
    wanted = "; ".join(f"{kind} {shortened(text)}" for kind, text in found.constraint.items())
    lead = (
        f"The chosen settings with the constraint {wanted} and without it. Valid is the share of texts that satisfy "
        "it, checked on the finished text. Change is the effect of the constraint on quality; positive is better. "
        f"Beside it the family is compared with the baseline, both constrained. {found.references:.1f} % of the test "
        "references satisfy the constraint."
    )
    return Section("Constrained decoding", [Table(columns, body)], lead)


def _cells(record: Record, found: ConstraintStudy, row: ConstrainedSetting, sizes: list[int]) -> list[Content]:
    against = row.against_baseline
    inconclusive = found.inconclusive or record.verdict.inconclusive
    word = "" if against is None else INCONCLUSIVE if inconclusive else against.verdict
    cells: list[Content] = [Cell(row.label, colour=colour(record, row.family))]
    cells += [interval_cell(value) for both in (row.valid, row.quality) for value in (both.without, both.under)]
    cells += [difference_cell(row.change), difference_cell(against), verdict_cell(word) if word else ""]
    cells.append(f"{row.nfe_under:.1f}")
    timed = {speed.batch: speed for speed in row.speed}
    lines = [
        [f"{batch}", seconds(speed.p50), f"{speed.slowdown.ratio:.2f}x"]
        if (speed := timed.get(batch)) is not None
        else [f"{batch}", "", ""]
        for batch in sizes
    ]
    cells += [list(column) for column in zip(*lines, strict=True)]
    return cells
