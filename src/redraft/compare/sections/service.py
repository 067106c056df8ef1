"""An external service beside the chosen settings: quality, latency and price."""

from __future__ import annotations

from redraft.compare.format import seconds
from redraft.compare.record import Record
from redraft.compare.report import Content, Row, Section, Table
from redraft.compare.results import ServiceComparison, ServiceResult
from redraft.compare.sections.common import difference_cell, interval_cell, verdict_cell


def table(record: Record) -> Section | None:
    """The service in the first row, then each chosen setting."""
    found = record.service
    if found is None:
        return None
    columns = ["", record.task.label, "difference, 95 %", "verdict", "latency, p50", "cost per\n1000 requests"]
    cost = "" if found.cost_per_thousand is None else f"{found.cost_per_thousand:.3g}"
    latency = "" if found.p50 is None else seconds(found.p50)
    value = interval_cell(found.quality.get(record.task.primary))
    body = [Row([found.model, value, "", "", latency, cost], "baseline")]
    body += [Row(_cells(record, entry)) for entry in found.against]
    return Section("External service", [Table(columns, body)], _lead(found))


def _lead(found: ServiceResult) -> str:
    text = (
        f"{found.model} at {found.endpoint} answered {found.answered} of {found.asked} items with {found.shots} "
        "examples shown. Differences are on the items that it answered; positive means that our setting is better."
    )
    if found.p95 is not None:
        text += f" Its latency includes the network (p95 {seconds(found.p95)})."
    for failure in found.failures:
        text += f" Not answered, and not scored: {failure.why} ({failure.count} times)."
    return text


def _cells(record: Record, entry: ServiceComparison) -> list[Content]:
    row = record.setting(entry.setting)
    speed = row.speed if row is not None else ()
    quality = row.quality.get(record.task.primary) if row is not None else None
    cost = speed[-1].cost_per_thousand if speed else None
    return [
        entry.label,
        interval_cell(quality),
        difference_cell(entry.difference),
        verdict_cell(entry.difference.verdict),
        seconds(speed[0].p50) if speed else "",
        "" if cost is None else f"{cost:.3g}",
    ]
