"""A tuning as a page for a browser, from the content of ``tune.json`` alone: one file, no script, no other files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from typing import Any

from redraft.compare import charts, figures
from redraft.compare.charts import Mark, Series
from redraft.compare.units import COLOURS, quantity, seconds

Row = Mapping[str, Any]


def html(found: Mapping[str, Any]) -> str:
    """One self-contained page: the choice, the fronts, and every setting that was tried."""
    style = files("redraft.compare").joinpath("report.css").read_text(encoding="utf-8")
    body = "\n".join(part for part in (_header(found), _choice(found), _charts(found), _table(found)) if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>redraft: {escape(found['model'])}, tuned</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def sentence(found: Mapping[str, Any]) -> str:
    """The outcome in one line."""
    behind, batch = found["against"]["best"], found["batches"][0]
    speed = found["speedup"][str(batch)]
    if found["winner"] == found["own"]:
        return f"Nothing quicker is good enough: {found['winner']} stays."
    return (
        f"{found['winner']}: {speed['ratio']:.2f}x as fast as today at batch {batch} "
        f"[{speed['low']:.2f}, {speed['high']:.2f}], {found['label']} {behind['difference']:+.2f} against the best "
        f"[{behind['low']:+.2f}, {behind['high']:+.2f}]."
    )


def doubts(found: Mapping[str, Any]) -> list[str]:
    """What a reader should not overlook."""
    notes = []
    behind = found["against"]["best"]
    if behind["low"] < -found["within"]:
        notes.append(
            f"On {found['rows']} rows the winner may be {-behind['low']:.1f} {found['label']} behind the best, "
            f"more than the {found['within']:g} allowed: give more rows to be surer."
        )
    if found["winner"] != found["own"]:
        own = found["against"]["own"]
        if own["high"] < 0:
            notes.append(f"Today's setting is better by {-own['difference']:.2f} {found['label']}.")
    return notes


def _header(found: Mapping[str, Any]) -> str:
    lead = (
        f"{found['task']}, {found['rows']:,} validation rows, {len(found['settings'])} settings, "
        f"{found['texts_written']:,} texts written. Within {found['within']:g} {found['label']} of the best, "
        f"the quickest at batch {found['batches'][0]}."
    )
    return (
        f'<header><p class="kicker">redraft tune</p><h1>{escape(found["model"])}</h1>'
        f'<p class="lead">{escape(lead)}</p></header>'
    )


def _choice(found: Mapping[str, Any]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in doubts(found))
    own = next(row for row in found["settings"] if row["id"] == found["own"])
    win = next(row for row in found["settings"] if row["id"] == found["winner"])
    facts = "".join(_tile(found, row, role) for row, role in ((own, "today"), (win, "chosen")))
    return (
        f'<section class="verdict good"><div class="tag">Chosen</div><p class="big">{escape(sentence(found))}</p>'
        f'</section>{f"<ul class=notes>{items}</ul>" if items else ""}<div class="tiles">{facts}</div>'
    )


def _tile(found: Mapping[str, Any], row: Row, role: str) -> str:
    facts = [(f"latency, batch {one['batch']}", seconds(one["p50"])) for one in row["speed"]]
    facts += [(f"tokens/s, batch {one['batch']}", f"{one['tokens_per_second']:,.0f}") for one in row["speed"]]
    facts += [("passes a text", f"{row['nfe']:.1f}"), ("tokens a pass", f"{row['tokens_per_pass']:.2f}")]
    facts += [("compute a token", f"{quantity(row['flops_per_token'])}FLOP")]
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in facts)
    value = row["quality"]
    return (
        f'<div class="tile k{1 if role == "chosen" else 0}"><h3>{escape(row["id"])}</h3><p class="role">{role}</p>'
        f'<p class="score">{value["value"]:.2f} <small>{escape(found["label"])}</small></p>'
        f'<p class="span">{value["low"]:.2f} to {value["high"]:.2f}</p><dl>{listed}</dl></div>'
    )


def _charts(found: Mapping[str, Any]) -> str:
    """Quality against latency at each batch size, and against passes."""
    names = list(dict.fromkeys(row["sampler"] for row in found["settings"]))
    label = found["label"]
    cards = []
    for batch in found["batches"]:
        at = {
            row["id"]: 1000 * one["p50"] for row in found["settings"] for one in row["speed"] if one["batch"] == batch
        }
        drawn = _scatter(found, names, at, str(batch), "median latency, milliseconds, log scale")
        cards.append(f'<div class="card"><h3>Batch {batch}: {escape(label)} against latency</h3>{drawn}</div>')
    passes = {row["id"]: row["nfe"] for row in found["settings"]}
    drawn = _scatter(found, names, passes, "nfe", "passes a text, log scale")
    cards.append(f'<div class="card"><h3>{escape(label)} against passes</h3>{drawn}</div>')
    legend = figures.keys(
        [(number % COLOURS, False, name) for number, name in enumerate(names)]
        + [(0, True, "taken out before all rows were written"), (0, False, "joined by a line: the Pareto front")]
    )
    return f'<h2>Pareto front</h2>{legend}<div class="pair">{"".join(cards)}</div>'


def _scatter(found: Mapping[str, Any], names: Sequence[str], at: Mapping[str, float], front: str, x_label: str) -> str:
    """One chart. The front is drawn as a line of its own, in order."""
    shown = [row for row in found["settings"] if row["id"] in at]
    series = []
    on = sorted((row for row in shown if row["front"].get(front)), key=lambda row: at[row["id"]])
    if len(on) > 1:
        marks = [replace(_mark(found, row, at), label="") for row in on]  # each is labelled among its own
        series.append(Series("front", names.index(on[0]["sampler"]) % COLOURS, marks))
    for number, name in enumerate(names):
        for lost in (False, True):
            mine = [row for row in shown if row["sampler"] == name and bool(row["lost"]) == lost]
            marks = [_mark(found, row, at) for row in mine]
            series.append(Series(name, number % COLOURS, marks, dashed=lost, joined=False))
    return charts.scatter(series, x_label, found["label"], f"{found['label']} against {x_label}")


def _mark(found: Mapping[str, Any], row: Row, at: Mapping[str, float]) -> Mark:
    value, strong = row["quality"], row["id"] in (found["winner"], found["own"])
    label = {found["own"]: "today", found["winner"]: "chosen"}.get(row["id"], "")
    title = f"{row['id']}: {value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f}), {row['nfe']:.1f} passes"
    low, high = (value["value"],) * 2 if row["lost"] else (value["low"], value["high"])
    return Mark(at[row["id"]], value["value"], low, high, title, label, strong)


def _table(found: Mapping[str, Any]) -> str:
    rows = sorted(found["settings"], key=lambda row: (bool(row["lost"]), -found["better"] * row["quality"]["value"]))
    batches = found["batches"]
    head = ["setting", found["label"], "rows", "passes", "tokens a pass", "compute a token"]
    head += [f"latency, batch {batch}" for batch in batches] + [f"tokens/s, batch {batch}" for batch in batches]
    head += ["taken out"]
    body = []
    for row in rows:
        speed = {one["batch"]: one for one in row["speed"]}
        tags = [name for name in ("winner", "own", "best") if row["id"] == found[name]]
        picks = "".join(f'<span class="pick">{tag}</span>' for tag in tags)
        value = row["quality"]
        cells = [f"{escape(row['id'])}{picks}"]
        cells += [f"{value['value']:.2f} <small>[{value['low']:.2f}, {value['high']:.2f}]</small>", str(row["rows"])]
        cells += [f"{row['nfe']:.1f}", f"{row['tokens_per_pass']:.2f}", f"{quantity(row['flops_per_token'])}FLOP"]
        cells += [seconds(speed[b]["p50"]) if b in speed else "" for b in batches]
        cells += [f"{speed[b]['tokens_per_second']:,.0f}" if b in speed else "" for b in batches]
        cells += [escape(row["lost"])]
        body.append(f'<tr class="{"first" if "winner" in tags else ""}">{"".join(f"<td>{c}</td>" for c in cells)}</tr>')
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        "<h2>Every setting</h2>"
        '<p class="lead">Those taken out early have wide intervals, on fewer rows: compare along the front.</p>'
        f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'
    )
