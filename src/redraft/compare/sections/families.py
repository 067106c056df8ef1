"""Families over all of their settings: what a pass writes, what equal quality costs, what settings change."""

from __future__ import annotations

from redraft.compare.format import flops, seconds
from redraft.compare.record import Record
from redraft.compare.report import Cell, Content, Row, Section, Table
from redraft.compare.results import EqualQuality, FamilySummary
from redraft.compare.sections.common import colour, interval_cell

_COSTS = {"passes": "passes", "operations": "compute", "seconds": "seconds, batch 1"}


def table(record: Record) -> Section | None:
    """A row for each family that has several settings, and for the baseline."""
    rows = record.families
    if not any(row.settings > 1 for row in rows):
        return None
    label = record.task.label
    costs = [name for name in _COSTS if all(name in row.at_equal_quality for row in rows)]
    columns = ["family", f"{label}: worst,\nmedian, best setting", "most depends on", "tokens\nper pass"]
    columns += ["accuracy under\nparallelism, 95 %"] if any(row.parallelism for row in rows) else []
    columns += [f"{_COSTS[name]} at\nequal quality" for name in costs]
    columns += [f"{label} at\nequal {_COSTS[name].partition(',')[0]}" for name in costs]
    body = [Row(_cells(record, row, costs), "baseline" if row.family == record.baseline.family else "") for row in rows]
    return Section("Over all settings", [Table(columns, body)], _lead(record))


def _lead(record: Record) -> str:
    text = (
        f"Equal quality is the best value of {record.baseline.family} less the margin of {record.task.margin:g}, and "
        "equal cost what its best setting costs; the cheapest or best setting is chosen anew in each resample. Tokens "
        "per pass count end-of-text and all passes of a text. Accuracy under parallelism is the area under quality "
        "over tokens per pass, with losses of quality punished, and depends on the best value of all families."
    )
    for row in record.families:
        if row.better is not None:
            holds = "holds for" if row.better_everywhere else "does not hold for"
            text += (
                f" With as many passes, {row.family} is better in {row.better:.0%} of {row.matched} matched cases; the "
                f"claim that it is better {holds} all settings."
            )
    return text


def _cells(record: Record, row: FamilySummary, costs: list[str]) -> list[Content]:
    tokens = [point.tokens_per_pass for point in row.points]
    cells: list[Content] = [
        Cell(row.family, f"{row.settings} setting{'s' if row.settings > 1 else ''}", colour(record, row.family)),
        Cell(f"{row.low:.1f}, {row.median:.1f}, {row.high:.1f}"),
        Cell(row.factor, f"{row.explained:.0%} of the variance") if row.factor else "",
        f"{min(tokens):.2g}" if max(tokens) - min(tokens) < 0.05 else f"{min(tokens):.2g} to {max(tokens):.2g}",
    ]
    if any(one.parallelism for one in record.families):
        cells.append(interval_cell(row.parallelism))
    cells += [_cost(name, row.at_equal_quality[name]) for name in costs]
    return cells + [interval_cell(row.at_equal_cost.get(name)) for name in costs]


def _cost(name: str, found: EqualQuality | None) -> Cell:
    if found is None:
        return Cell("not reached")
    low, value, high = (_amount(name, one) for one in (found.low, found.cost, found.high))
    return Cell(value, f"{low} to {high}")


def _amount(name: str, value: float) -> str:
    if value == float("inf"):
        return "not reached"
    return flops(value) if name == "operations" else seconds(value) if name == "seconds" else f"{value:.1f}"
