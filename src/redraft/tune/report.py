"""The report of a tuning, from ``TuneResults`` alone: the choice, the Pareto fronts, and everything that was tried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from redraft.compare.format import flops, seconds
from redraft.compare.report import (
    Block,
    Card,
    Cards,
    Caveats,
    Cell,
    Content,
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
    render_html,
    render_markdown,
)
from redraft.compare.report.charts import COLOURS
from redraft.errors import UserError
from redraft.evaluation.stats import Interval
from redraft.files import keep_aside, write_atomically
from redraft.tune.results import TriedConfig, TuneResults


def write(found: TuneResults, folder: Path) -> None:
    """Write ``tune.json``, ``tune.html`` and ``tune.md``."""
    made = report(found)
    found.write(folder)
    write_atomically(folder / "tune.html", render_html(made))
    write_atomically(folder / "tune.md", render_markdown(made))


def keep_older(found: TuneResults, folder: Path) -> Path | None:
    """Where the report of another tuning in this folder was moved to; None if there is none.

    It is another one if its model, data, rows, task or tolerance differ.
    """
    if not (folder / "tune.json").exists():
        return None
    try:
        older: TuneResults | None = TuneResults.read(folder)
    except UserError:  # damaged, or of another version
        older = None
    same = older is not None and _subject(older) == _subject(found)
    return None if same else keep_aside(folder, ("tune.json", "tune.html", "tune.md"))


def _subject(found: TuneResults) -> tuple[object, ...]:
    about = (found.model, found.data, found.task, found.metric, found.rows)
    return (*about, found.within, found.batches, found.max_new_tokens, found.temperature)


def report(found: TuneResults) -> Report:
    """The sections of the report."""
    return Report(
        title=f"{found.model}, tuned",
        kicker="redraft tune",
        lead=f"{found.task}, {found.rows:,} validation rows, {len(found.settings)} configurations, "
        f"{found.texts_generated:,} texts generated. Within {found.within:g} {found.label} of the best, the fastest at "
        f"batch {found.batches[0]}. Metric: {found.signature or found.metric}.",
        sections=[Section("", _choice(found)), _fronts(found), _table(found), *_test(found)],
    )


def outcome(found: TuneResults) -> str:
    """The result in one sentence."""
    if found.winner == found.current:
        return f"Nothing faster is good enough: {found.winner} stays."
    behind, batch = found.against["best"], found.batches[0]
    speed = found.speedup[str(batch)]
    return (
        f"{found.winner}: {speed.value:.2f}x as fast as the current configuration at batch {batch} "
        f"[{speed.low:.2f}, {speed.high:.2f}], {found.label} {behind.value:+.2f} against the best "
        f"[{behind.low:+.2f}, {behind.high:+.2f}]."
    )


def caveats(found: TuneResults) -> list[str]:
    """What to read before relying on the choice."""
    notes, behind, current = [], found.against["best"], found.against["current"]
    if behind.low < -found.within:
        notes.append(
            f"On {found.rows} rows the winner may be {-behind.low:.1f} {found.label} behind the best, "
            f"more than the {found.within:g} allowed. More rows make this more certain."
        )
    if found.winner != found.current and current.high < 0:
        notes.append(f"The current configuration is better by {-current.value:.2f} {found.label}.")
    return notes


def held_out_sentence(found: TuneResults) -> str:
    """The result on test rows in one sentence; empty if it was not measured."""
    if (test := found.test) is None:
        return ""
    return (
        f"Test, {test.rows} rows: {test.winner.value:.2f} {found.label}, current configuration "
        f"{test.current.value:.2f}, {test.difference.value:+.2f} [{test.difference.low:+.2f}, "
        f"{test.difference.high:+.2f}]."
    )


def tags(found: TuneResults, one: TriedConfig) -> list[str]:
    """What stands out in a configuration: chosen, current, best."""
    names = (("chosen", found.winner), ("current", found.current), ("best", found.best))
    return [tag for tag, name in names if one.id == name]


def _choice(found: TuneResults) -> list[Block]:
    blocks: list[Block] = [Headline("Chosen", "good", outcome(found))]
    notes = caveats(found)
    blocks += [Caveats(notes)] if notes else []
    names = {"current": found.current, "chosen": found.winner}
    cards = [_card(found, found.find(name), role, number) for number, (role, name) in enumerate(names.items())]
    return [*blocks, Cards(cards)]


def _card(found: TuneResults, one: TriedConfig, role: str, colour: int) -> Card:
    facts = [(f"latency, batch {timing.batch}", seconds(timing.p50)) for timing in one.speed]
    facts += [(f"tokens/s, batch {timing.batch}", f"{timing.tokens_per_second:,.0f}") for timing in one.speed]
    facts += [("forward passes per text", f"{one.nfe:.1f}"), ("tokens per pass", f"{one.tokens_per_pass:.2f}")]
    facts += [("compute per token", flops(one.flops_per_token))]
    quality = one.quality
    span = f"{quality.low:.2f} to {quality.high:.2f}"
    return Card(one.id, role, f"{quality.value:.2f}", found.label, span, facts, colour)


def _fronts(found: TuneResults) -> Section:
    """Quality against latency at each batch size, and against forward passes."""
    names = list(dict.fromkeys(one.config.sampler for one in found.settings))
    panels = []
    for batch in found.batches:
        chart = _scatter(found, names, str(batch), "median latency, milliseconds", 1000.0)
        panels.append(Panel(f"Batch {batch}: {found.label} against latency", chart))
    chart = _scatter(found, names, "nfe", "forward passes per text", 1.0)
    panels.append(Panel(f"{found.label} against forward passes", chart))
    legend = [Legend(name, number % COLOURS) for number, name in enumerate(names)]
    legend += [Legend("eliminated before all rows", 0, hollow=True), Legend("joined by a line: the Pareto front", 0)]
    return Section("Pareto front", [Panels(panels, legend)])


def _scatter(found: TuneResults, names: Sequence[str], axis: str, x_label: str, unit: float) -> Scatter:
    """One chart. The front is drawn as a line of its own, in order of cost."""
    at = {one.id: unit * cost for one in found.settings if (cost := one.cost(axis)) is not None}
    shown = [one for one in found.settings if one.id in at]
    series = []
    front = sorted((one for one in shown if one.front.get(axis)), key=lambda one: at[one.id])
    if len(front) > 1:
        marks = [replace(_mark(found, one, at[one.id]), label="") for one in front]  # its own series has the label
        series.append(Series("front", names.index(front[0].config.sampler) % COLOURS, marks))
    for number, name in enumerate(names):
        for eliminated in (False, True):
            mine = [one for one in shown if one.config.sampler == name and bool(one.eliminated) == eliminated]
            marks = [_mark(found, one, at[one.id]) for one in mine]
            series.append(Series(name, number % COLOURS, marks, hollow=eliminated, joined=False))
    return Scatter(series, x_label, found.label, f"{found.label} against {x_label}")


def _mark(found: TuneResults, one: TriedConfig, at: float) -> Mark:
    quality = one.quality
    low, high = (quality.value, quality.value) if one.eliminated else (quality.low, quality.high)
    label = next((tag for tag in tags(found, one) if tag != "best"), "")
    return Mark(at, quality.value, low, high, one.id, label, strong=one.id in (found.winner, found.current))


def _table(found: TuneResults) -> Section:
    columns = ["configuration", found.label, "rows", "forward passes", "tokens per pass", "compute per token"]
    columns += [f"latency, batch {batch}" for batch in found.batches]
    columns += [f"tokens/s, batch {batch}" for batch in found.batches]
    columns += ["eliminated"]
    ordered = sorted(found.settings, key=lambda one: (bool(one.eliminated), -found.better * one.quality.value))
    lead = "Configurations that were eliminated early have wide intervals, on fewer rows: compare along the front."
    return Section("Every configuration", [Table(columns, [_row(found, one) for one in ordered])], lead)


def _row(found: TuneResults, one: TriedConfig) -> Row:
    times = [one.timing(batch) for batch in found.batches]
    cells: list[Content] = [Cell(one.id, tags=tags(found, one)), _value(one.quality), str(one.rows)]
    cells += [f"{one.nfe:.1f}", f"{one.tokens_per_pass:.2f}", flops(one.flops_per_token)]
    cells += [seconds(time.p50) if time else "" for time in times]
    cells += [f"{time.tokens_per_second:,.0f}" if time else "" for time in times]
    return Row([*cells, one.eliminated], "baseline" if one.id == found.winner else "")


def _value(one: Interval) -> Cell:
    return Cell(f"{one.value:.2f}", f"{one.low:.2f} to {one.high:.2f}")


def _test(found: TuneResults) -> list[Section]:
    if (test := found.test) is None:
        return []
    rows = [Row(["current", _value(test.current)]), Row(["chosen", _value(test.winner)])]
    rows.append(Row(["difference", _value(test.difference)]))
    lead = f"On {test.rows:,} test rows, which had no part in the choice."
    return [Section("Test", [Table(["configuration", found.label], rows)], lead)]
