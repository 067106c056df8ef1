"""The report of a study, a file for each group of sections. To add a section, write its function and name it here."""

from __future__ import annotations

from redraft.compare.record import Record
from redraft.compare.report import Report
from redraft.compare.sections import (
    constraint,
    families,
    method,
    overview,
    quality,
    samples,
    service,
    speed,
    training,
)

ORDER = (
    overview.headline,
    overview.cards,
    quality.pareto,
    quality.table,
    speed.table,
    families.table,
    constraint.table,
    service.table,
    quality.lengths,
    samples.samples,
    training.runs,
    method.method,
    method.glossary,
)


def study_report(record: Record) -> Report:
    """The report of a study, also of an unfinished or inconclusive one. Sections without content are left out."""
    title = f"{' or '.join(record.study.families)}?"
    return Report(
        title=title[:1].upper() + title[1:],
        sections=[found for section in ORDER if (found := section(record)) is not None],
        kicker=f"redraft compare · {record.task.name}",
        lead=overview.summary(record),
        footer="All numbers are in results.json beside this file.",
    )
