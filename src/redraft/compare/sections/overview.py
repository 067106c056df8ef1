"""The top of the report: the verdict, the caveats, and the settings to look at first."""

from __future__ import annotations

from redraft.compare.format import flops, quantity, seconds, signed
from redraft.compare.record import Record
from redraft.compare.report import Card, Cards, Caveats, Chip, Headline, Point, Section, Tone
from redraft.compare.results import SettingResult
from redraft.compare.sections.common import TONES, by_family, colour, verdict_word

TAGS = {"same": "Same quality", "better": "Better quality", "worse": "Worse quality", "undecided": "Undecided"}


def summary(record: Record) -> str:
    """One line about data and models."""
    rows, runs = record.data.rows, record.training
    size = f"Models of {quantity(runs[0].parameters).strip()} parameters, " if runs else "Models "
    how = "fine-tuned" if record.study.bases else "trained from scratch"
    if any(start.converted for start in record.starts):
        how = "fine-tuned or converted"
    return (
        f"{record.data.source}: {rows['train']:,} training rows, {record.data.test_items:,} test items. "
        f"{size}{how} on {quantity(record.plan.tokens).strip()} tokens each. {record.created[:10]}."
    )


def headline(record: Record) -> Section:
    """The verdict and the caveats."""
    verdict = record.verdict
    tone: Tone = "warn"
    tag, text, points = "No verdict", verdict.headline, []
    if verdict.inconclusive:
        tag, tone = "Inconclusive", "bad"
        text = (
            "Nothing can be concluded: the baseline does not beat a trivial system. Give more data or a larger budget."
        )
        points = [Point("Reason", reason) for reason in verdict.inconclusive]
    elif verdict.lines:
        first = verdict.lines[0]
        tag, tone, text = TAGS[first.quality], TONES[first.quality], first.advice_text
        points = [_point(line.text) for line in verdict.lines]
    chips = [Chip("preliminary: one training seed", warning=True)] if verdict.preliminary else []
    chips += [] if record.complete else [Chip("some pieces are missing", warning=True)]
    seeds = record.study.seeds
    chips += [
        Chip(f"same means within ±{record.task.margin:g} {record.task.label}"),
        Chip(f"{seeds} training seed{'s' if seeds > 1 else ''}"),
        Chip(f"{record.data.test_items:,} test items"),
    ]
    return Section("", [Headline(tag, tone, text, points, chips), Caveats(record.caveats)])


def _point(text: str) -> Point:
    head, _, rest = text.partition(": ")
    return Point(head, rest)


def cards(record: Record) -> Section | None:
    """The baseline, settings that are as good as a chosen one and as fast, and the chosen settings of the others."""
    name, baseline = record.task.primary, record.baseline
    rows = [row for row in by_family(record) if name in row.quality and row.work is not None]
    wanted = [baseline.setting, baseline.speed_setting]
    wanted += [one.setting for line in record.verdict.lines for one in line.alternatives]
    shown = [row for wish in dict.fromkeys(wanted) for row in rows if row.id == wish]
    shown += [row for row in rows if row.chosen and row.family != baseline.family]
    return Section("", [Cards([_card(record, row) for row in shown])]) if len(shown) > 1 else None


def _card(record: Record, row: SettingResult) -> Card:
    assert row.work is not None
    value, tested = row.quality[record.task.primary], row.against_baseline.get(record.task.primary)
    facts = [("difference", f"{signed(tested.difference)} ({verdict_word(record, tested)})")] if tested else []
    for speed in row.speed:
        ratio = f" ({speed.speedup.ratio:.2g}x)" if speed.speedup else ""
        facts.append((f"latency, batch {speed.batch}", f"{seconds(speed.p50)}{ratio}"))
    for speed in row.speed[-1:]:
        facts.append((f"tokens/s, batch {speed.batch}", f"{speed.tokens_per_second:,.0f}"))
        if speed.cost_per_thousand is not None:
            facts.append((f"cost per 1000 requests, batch {speed.batch}", f"{speed.cost_per_thousand:.3g}"))
    facts.append(("forward passes per text", f"{row.work.nfe:.1f}"))
    facts.append(("compute per token", flops(row.work.flops_per_token)))
    return Card(
        title=row.label,
        role=_role(record, row),
        value=f"{value.value:.1f}",
        unit=record.task.label,
        detail=f"95 % interval {value.low:.1f} to {value.high:.1f}",
        facts=facts,
        colour=colour(record, row.family),
    )


def _role(record: Record, row: SettingResult) -> str:
    """Why a setting is shown."""
    if row.id == record.baseline.setting:
        return "baseline: the best setting of its family on validation rows"
    if row.id == record.baseline.speed_setting:
        return "reference for speed: the fastest setting within the margin"
    if row.family == record.baseline.family:
        return "scores no lower than a chosen setting and is at least as fast"
    if len(row.chosen) == 2:
        return "best on validation rows, and the fastest within the margin"
    return "best on validation rows" if "best" in row.chosen else "fastest within the margin of its family's best"
