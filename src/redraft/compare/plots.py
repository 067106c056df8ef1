"""The charts of a study's report: which results become which marks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redraft.compare.record import Record
from redraft.compare.report import Curves, Groups, Legend, Mark, Panel, Panels, Scatter, Series
from redraft.compare.results import SettingResult
from redraft.compare.sections.common import by_family, colour, family_label, label_of


def pareto(record: Record) -> Panels | None:
    """Quality against latency, a chart for each batch size; None if nothing was timed."""
    rows = [row for row in by_family(record) if record.task.primary in row.quality and row.speed]
    label = record.task.label
    panels = [
        Panel(
            f"Batch {batch}",
            Scatter(
                _series(record, rows, batch),
                "median latency, milliseconds",
                label,
                f"{label} against median latency at batch size {batch}",
            ),
        )
        for batch in sorted({speed.batch for row in rows for speed in row.speed})
    ]
    return Panels(panels, _legend(record, rows)) if panels else None


def _series(record: Record, rows: Sequence[SettingResult], batch: int) -> list[Series]:
    """A series for all settings that differ only in steps."""
    kinds: dict[tuple[Any, ...], list[Mark]] = {}
    for row in sorted(rows, key=lambda row: row.decoding.steps or 0):
        speed = next((one for one in row.speed if one.batch == batch), None)
        if speed is None:
            continue
        value, decoding = row.quality[record.task.primary], row.decoding
        fixed = tuple(sorted((k, str(v)) for k, v in decoding.options.items() if k not in ("steps", "beams")))
        kind = (row.family, decoding.sampler, decoding.candidates, decoding.top_p, fixed)
        kinds.setdefault(kind, []).append(
            Mark(
                x=1000 * speed.p50,
                y=value.value,
                low=value.low,
                high=value.high,
                name=row.label,
                label=str(decoding.steps or row.label.removeprefix(f"{row.family}, ")),
                strong=bool(row.chosen),
            )
        )
    return [
        Series(
            name=kind[0],
            colour=colour(record, kind[0]),
            marks=marks,
            hollow=kind[2] > 1 or (kind[3] is not None and kind[3] < 1),
            joined=marks[0].label.isdigit(),
        )
        for kind, marks in kinds.items()
    ]


def _legend(record: Record, rows: Sequence[SettingResult]) -> list[Legend]:
    entries = []
    for family in record.study.families:
        own = [row.decoding for row in rows if row.family == family]
        several = sorted({one.candidates for one in own if one.candidates > 1})
        cut = sorted({one.top_p for one in own if one.top_p is not None and one.top_p < 1})
        words = [f"{count} output lengths tried" for count in several] + [f"top-p {p:g}" for p in cut]
        entries.append(Legend(family, colour(record, family)))
        entries += [Legend(f"{family}, {', '.join(words)}", colour(record, family), hollow=True)] if words else []
    return entries


def by_length(record: Record) -> Panels | None:
    """Quality by tokens of the reference; None with fewer than two groups."""
    buckets = record.buckets
    if len(buckets) < 2:
        return None
    families = {row.id: row.family for row in record.settings}
    series: list[Series] = []
    for name in dict.fromkeys(name for bucket in buckets for name in bucket.values):
        own = colour(record, families[name])
        marks = [
            Mark(i, value.value, value.low, value.high, label_of(record, name))
            for i, bucket in enumerate(buckets)
            if (value := bucket.values.get(name)) is not None
        ]
        hollow = any(one.colour == own for one in series)
        series.append(Series(label_of(record, name), own, marks, hollow=hollow))
    names = [f"{bucket.above + 1}–{bucket.to}\n{bucket.rows} items" for bucket in buckets]
    chart = Groups(names, series, "tokens of the reference", record.task.label, "quality by output length")
    return Panels([Panel("", chart)], [Legend(one.name, one.colour, one.hollow) for one in series])


def learning(record: Record) -> Panel | None:
    """Validation loss by passes over the training rows; None if no run was validated."""
    series = []
    for run in record.training:
        points = run.curve.validation
        best = min((point.bits_per_byte for point in points), default=0.0)
        label = f"{family_label(record, run)}, seed {run.seed}"
        marks = [
            Mark(
                x=point.passes or 0.0,
                y=point.bits_per_byte,
                low=point.bits_per_byte,
                high=point.bits_per_byte,
                name=f"{label}: {point.bits_per_byte:.3f} after {point.tokens:,} tokens",
                strong=point.bits_per_byte == best,
            )
            for point in points
        ]
        series += [Series(label, colour(record, run.family), marks, hollow=not run.kept)] if marks else []
    if not series:
        return None
    chart = Curves(series, "passes over the training rows", "validation bits per byte", "learning curves")
    return Panel("Learning curves", chart)
