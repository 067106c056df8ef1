"""Quality: against latency, of every setting on every metric, and by output length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from redraft.compare import plots
from redraft.compare.format import probability
from redraft.compare.record import Record
from redraft.compare.report import Cell, Content, Interval, Row, Section, Table
from redraft.compare.results import Difference, SettingResult
from redraft.compare.sections.common import (
    by_family,
    colour,
    difference_cell,
    interval_cell,
    label_of,
    row_kind,
    setting_cell,
    verdict_cell,
    verdict_word,
)
from redraft.evaluation import stats


def pareto(record: Record) -> Section | None:
    """Quality against latency."""
    panels = plots.pareto(record)
    lead = (
        "Up and to the left is better. Each point is one decoding setting with its 95 % interval. Numbers are "
        "denoising steps; lines join settings that differ only in steps. Large points were chosen on validation rows."
    )
    return None if panels is None else Section("Quality against latency", [panels], lead)


def table(record: Record) -> Section | None:
    """Every setting on every metric, and the tests against the baseline."""
    metrics, name = record.task.metrics, record.task.primary
    rows = [row for row in by_family(record) if row.quality]
    if not rows:
        return None
    tests = [row.against_baseline[name] for row in rows if name in row.against_baseline]
    columns = ["setting", *(metric.label for metric in metrics)]
    columns += ["difference, 95 %", "", "verdict", "p (Holm)"] if tests else []
    blank: list[Content] = ["", "", "", ""] if tests else []
    trivial: list[Content] = ["", "", "trivial baseline", ""] if tests else []
    body = []
    for row in rows:
        cells = [setting_cell(record, row), *_values(record, row.quality), *_tested(record, row, tests)]
        body.append(Row(cells, row_kind(record, row.id)))
    for baseline in record.baselines.texts:
        body.append(Row([baseline.name, *_values(record, baseline.quality), *trivial], "muted"))
    if people := record.baselines.human_texts:
        body.append(Row(["other texts by people", *_values(record, people), *blank], "muted"))
    if own := record.references:
        values = [f"{own[metric.name]:.1f}" if metric.name in own else "" for metric in metrics]
        body.append(Row(["the references", *values, *blank], "muted"))
    reference, margin = label_of(record, record.baseline.setting), record.task.margin
    lead = (
        f"Values on test rows with 95 % bootstrap intervals. Differences are to {reference}; positive is better. Same "
        f"means within the margin of ±{margin:g}, which the band shows."
    )
    return Section("Quality", [Table(columns, body)], lead)


def _values(record: Record, quality: Mapping[str, stats.Interval]) -> list[Content]:
    return [interval_cell(quality.get(metric.name)) for metric in record.task.metrics]


def _tested(record: Record, row: SettingResult, tests: Sequence[Difference]) -> list[Content]:
    """Difference, drawing, verdict and p-value."""
    tested = row.against_baseline.get(record.task.primary)
    if tested is None:
        return [""] * 4 if tests else []
    room = 3 * tested.margin
    axis = (min(-room, *(t.low for t in tests)), max(room, *(t.high for t in tests)))
    own = colour(record, row.family)
    return [
        difference_cell(tested),
        Cell(drawing=Interval(tested.difference, tested.low, tested.high, tested.margin, axis, own)),
        verdict_cell(verdict_word(record, tested)),
        "" if tested.p_holm is None else probability(tested.p_holm),
    ]


def lengths(record: Record) -> Section | None:
    """Quality by tokens of the reference."""
    panels = plots.by_length(record)
    lead = "Quality on short and on long answers, with 95 % intervals."
    return None if panels is None else Section("Quality by output length", [panels], lead)
