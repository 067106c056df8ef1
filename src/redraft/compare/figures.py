"""The charts of a report: which numbers become which marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from redraft.compare import charts
from redraft.compare.charts import Mark, Series
from redraft.compare.units import Results, by_family, colour, label_of, primary, seconds, trained_as


def pareto(found: Results) -> str:
    """Quality against latency, a chart for each batch size; empty where nothing was timed."""
    name = found["task"]["primary"]
    rows = [row for row in by_family(found) if name in row["quality"] and row["speed"]]
    cards = []
    for batch in sorted({speed["batch"] for row in rows for speed in row["speed"]}):
        about = f"{primary(found)} against median latency at batch {batch}"
        series = _by_kind(found, rows, batch)
        drawn = charts.scatter(series, "median latency, milliseconds, log scale", primary(found), about)
        cards.append(f'<div class="card"><h3>Batch {batch}</h3>{drawn}</div>')
    return _legend(found, rows) + f'<div class="pair">{"".join(cards)}</div>' if cards else ""


def _by_kind(found: Results, rows: Sequence[Mapping[str, Any]], batch: int) -> list[Series]:
    """A series for all settings that differ in nothing but steps."""
    kinds: dict[tuple[Any, ...], list[Mark]] = {}
    for row in sorted(rows, key=lambda r: r["steps"] or 0):
        speed = next((s for s in row["speed"] if s["batch"] == batch), None)
        if speed is None:
            continue
        value = row["quality"][found["task"]["primary"]]
        fixed = tuple(sorted((k, str(v)) for k, v in row["options"].items() if k not in ("steps", "beams")))
        kind = (row["family"], row["sampler"], row["candidates"], row["top_p"], fixed)
        kinds.setdefault(kind, []).append(
            Mark(
                x=1000 * speed["p50"],
                y=value["value"],
                low=value["low"],
                high=value["high"],
                title=f"{row['label']}: {_span(value)}, {seconds(speed['p50'])}",
                label=str(row["steps"] or row["label"].removeprefix(f"{row['family']}, ")),
                strong=bool(row["chosen"]),
            )
        )
    return [
        Series(kind[0], colour(found, kind[0]), marks, _hollow(kind[2], kind[3]), joined=marks[0].label.isdigit())
        for kind, marks in kinds.items()
    ]


def _hollow(candidates: int, top_p: float) -> bool:
    return candidates > 1 or top_p < 1


def _legend(found: Results, rows: Sequence[Mapping[str, Any]]) -> str:
    entries = []
    for family in found["study"]["families"]:
        mine = [row for row in rows if row["family"] == family]
        several = sorted({row["candidates"] for row in mine if row["candidates"] > 1})
        cut = sorted({row["top_p"] for row in mine if row["top_p"] < 1})
        words = [f"{n} output lengths tried" for n in several] + [f"top-p {p:g}" for p in cut]
        entries.append((colour(found, family), False, family))
        entries += [(colour(found, family), True, f"{family}, {', '.join(words)}")] if words else []
    return keys(entries)


def keys(entries: Sequence[tuple[int, bool, str]]) -> str:
    """A legend of (colour, hollow, name)."""
    spans = [
        f'<span class="k{number}"><i{" class=ring" if hollow else ""}></i>{escape(name)}</span>'
        for number, hollow, name in entries
    ]
    return f'<div class="legend">{"".join(spans)}</div>'


def by_length(found: Results) -> str:
    """Quality by tokens of the reference; empty with fewer than two buckets."""
    buckets = found["buckets"]
    if len(buckets) < 2:
        return ""
    names = dict.fromkeys(name for bucket in buckets for name in bucket["values"])
    families = {row["id"]: row["family"] for row in found["settings"]}
    series: list[Series] = []
    for name in names:
        family, label = families[name], label_of(found, name)
        marks = [
            Mark(i, value["value"], value["low"], value["high"], f"{label}: {_span(value)}")
            for i, bucket in enumerate(buckets)
            if (value := bucket["values"].get(name))
        ]
        again = any(s.colour == colour(found, family) for s in series)
        series.append(Series(label, colour(found, family), marks, dashed=again))
    groups = [f"{b['above'] + 1}–{b['to']}\n{b['rows']} items" for b in buckets]
    drawn = charts.groups(groups, series, "tokens of the reference", primary(found), "quality by output length")
    return keys([(s.colour, s.dashed, s.name) for s in series]) + f'<div class="card wide">{drawn}</div>'


def learning(found: Results) -> str:
    """Validation bits per byte by passes over the training rows."""
    series = []
    for run in found["training"]:
        points = run["curve"]["validation"]
        best = min((p["bits_per_byte"] for p in points), default=0.0)
        marks = [
            Mark(
                x=p["passes"] or 0.0,
                y=p["bits_per_byte"],
                low=p["bits_per_byte"],
                high=p["bits_per_byte"],
                title=f"{run['family']}: {p['bits_per_byte']:.3f} after {p['tokens']:,} tokens",
                strong=p["bits_per_byte"] == best,
            )
            for p in points
        ]
        label = f"{trained_as(found, run)}, seed {run['seed']}"
        series.append(Series(label, colour(found, run["family"]), marks, dashed=not run["kept"]))
    series = [s for s in series if s.marks]
    return charts.lines(series, "passes over the training rows", "validation bits per byte", "learning curves")


def _span(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"
