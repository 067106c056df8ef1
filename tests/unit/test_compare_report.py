"""The report: self-contained, escaped, the same in both renderings, and there for unfinished studies too."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from _studies import MANY, constrained, measured, record, with_texts

from redraft.compare.analysis import analyse
from redraft.compare.format import memory, quantity, seconds
from redraft.compare.measurements import Missing
from redraft.compare.record import Record
from redraft.compare.report import (
    Cell,
    Command,
    Facts,
    Report,
    Row,
    Sample,
    Samples,
    Section,
    Table,
    charts,
    render_html,
    render_markdown,
)
from redraft.compare.sections import study_report
from redraft.evaluation.items import Item

EVIL = "<script>alert('x')</script> & <b>\"bold\"</b>"


class Checker(HTMLParser):
    """Every tag that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def page_of(found: Record) -> str:
    return render_html(study_report(found))


def text_of(found: Record) -> str:
    return render_markdown(study_report(found))


def test_a_report_holds_every_part() -> None:
    found = record()
    page = parsed(page_of(found))
    words = " ".join(page.words)
    for part in ("Quality against latency", "Speed, compute and memory", "Samples", "Training", "How this was"):
        assert part in words
    for row in found.settings:
        assert row.label in words
    for line in found.verdict.lines:
        assert line.text.partition(": ")[2] in words
    assert page.tags.count("svg") >= 4


def tokens(text: str) -> set[str]:
    """Words and numbers without the marks of Markdown."""
    return set(re.sub(r"[\\|*`#\[\](),:]", " ", text).split())


def test_markdown_has_every_word_and_number_of_the_page() -> None:
    """Drawings apart, whose numbers are in tables; tooltips repeat them."""
    found = analyse(constrained(".*(haus|rot).*"))
    page = re.sub(r"<style>.*?</style>|<svg.*?</svg>|<title>.*?</title>", " ", page_of(found), flags=re.S)
    known = tokens(text_of(found))
    assert tokens(" ".join(parsed(page).words)) <= known
    for chart in (panel.content for section in study_report(found).sections for panel in panels(section)):
        head, *rows = chart.table()
        assert rows and all(len(row) == len(head) for row in rows)
        assert all(tokens(cell) <= known for row in rows for cell in row)


def panels(section: Section) -> list[Any]:
    found = [panel for block in section.blocks for panel in getattr(block, "panels", [])]
    return [panel for panel in found if not isinstance(panel.content, Table)]


def test_an_alternative_has_a_card_beside_the_chosen_settings() -> None:
    page = page_of(record(damage={MANY.id: 0.35}))
    (cards,) = re.findall(r'<div class="tiles">.*?</dl></div></div>', page, re.S)
    assert "autoregressive, greedy" in cards


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = page_of(record())
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<script|<link|https?://""", page)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_what_models_and_users_write_is_escaped() -> None:
    study = measured()
    study.test = (Item(EVIL, (EVIL,), 1), *study.test[1:])
    study.texts = [with_texts(one, [EVIL] * len(one.texts)) if one.part == "test" else one for one in study.texts]
    study.command, study.data = EVIL, replace(study.data, source=EVIL, notes=(EVIL,))
    study.missing = [Missing(EVIL, EVIL)]
    found = analyse(study)
    page = page_of(found)
    assert "<script" not in page and '<b>"' not in page
    assert any(EVIL in word or "alert('x')" in word for word in parsed(page).words)
    outside_code = re.sub(r"^```$.*?^```$", "", text_of(found), flags=re.S | re.M)
    assert not re.search(r"(?<!\\)<script", outside_code)


@pytest.mark.parametrize(
    "kinds", [set(), {"training"}, {"texts"}, {"timings", "texts"}, {"baselines"}, {"likelihoods"}]
)
def test_unfinished_studies_have_a_report(kinds: set[str]) -> None:
    study = measured()
    for name in {"training", "likelihoods", "texts", "timings", "baselines"} - kinds:
        setattr(study, name, None if name == "baselines" else [])
    study.missing = [Missing("training masked, seed 0", "the loss is not finite")]
    found = analyse(study)
    assert "the loss is not finite" in " ".join(parsed(page_of(found)).words)
    assert "the loss is not finite" in text_of(found)


def test_an_inconclusive_study_has_no_verdict_on_any_row() -> None:
    found = record(baseline=0.0)
    page = page_of(found)
    assert "Inconclusive" in parsed(page).words
    badges = re.findall(r'class="badge \w+">(\w+)<', page)
    assert badges and set(badges) == {"inconclusive"}
    text = text_of(found)
    assert "**Inconclusive" in text and "Choose" not in text
    assert not re.search(r"\| (same|better|worse|undecided) \|", text)


def test_markdown_begins_with_the_verdict_and_its_tables_are_whole() -> None:
    found = analyse(constrained("[a-z ]+"))
    text = text_of(found)
    assert text.index(found.verdict.advice_text) < text.index("## ")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_more_batch_sizes_make_the_speed_table_no_wider() -> None:
    def head(batches: tuple[int, ...]) -> list[str]:
        study = measured()
        first = study.timings[0]
        study.timings = [replace(first, batch=batch) for batch in batches]
        table = page_of(analyse(study)).partition("<h2>Speed")[2].partition("</table>")[0]
        assert all(f'<div class="line">{batch}</div>' in table for batch in batches)
        return re.findall("<th>(.*?)</th>", table)

    assert head((1,)) == head((1, 8, 32))


def test_both_renderings_of_one_model() -> None:
    """What ``tune`` and others need to know of the two renderings."""
    table = Table(["name", "value", ""], [Row([Cell("a|b", tags=["new"]), (Cell("1", "0 to 2"), "3"), Cell()])])
    sample = Sample("one\ntwo", [("model", "```\n*x*"), ("other", " ")])
    report = Report("A or B?", [Section("Part", [table, Samples([sample]), Facts({"k": "v_w"}), Command("go")], "why")])
    text = render_markdown(report)
    assert "| a\\|b [new] | 1 (0 to 2) |" in text and "|  | 3 |" in text
    assert "````\n  ```\n  *x*\n  ````" in text and "other: (empty)" in text and "- k: v_w" in text
    page = parsed(render_html(report))
    assert {"A or B?", "Part", "why", "a|b", "new", "1", "0 to 2", "3", "one\ntwo", "(empty)", "go"} <= {
        word.strip() for word in page.words
    }


def test_differences_far_apart_keep_their_distance() -> None:
    """Every value has its own place inside the drawing, however far the others are."""
    values, axis = [-25.0, -9.0, -0.5, 2.0], (-28.0, 3.0)
    drawn = [charts.forest(value, value - 2, value + 1, 1.0, axis, 0) for value in values]
    places = [float(found[1]) for one in drawn if (found := re.search(r'<circle[^>]* cx="([\d.]+)"', one))]
    assert len(places) == 4 and places[0] > 0 and places[-1] < 140
    gaps = [b - a for a, b in zip(places, places[1:], strict=False)]
    assert gaps[0] / gaps[1] == pytest.approx(16 / 8.5, rel=0.01)


def test_scales_keep_order_and_ticks_lie_inside() -> None:
    for log in (False, True):
        scale = charts.Scale.around([0.003, 0.2, 40.0], 0.0, 100.0, log)
        assert 0 < scale(0.003) < scale(0.2) < scale(40.0) < 100
        ticks = scale.ticks()
        assert len(ticks) >= 2 and all(0 <= scale(t) <= 100 for t in ticks)
    flat = charts.Scale.around([5.0, 5.0], 0.0, 100.0)
    assert 0 < flat(5.0) < 100


def test_labels_do_not_cover_one_another() -> None:
    labels = charts.Labels()
    for _ in range(12):
        labels.place(200, 150, "8 steps")
    boxes = labels.boxes
    assert len(boxes) >= 2
    assert not any(charts._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_numbers_as_text() -> None:
    assert quantity(1_234_567) == "1.23 M" and quantity(12.0) == "12 " and quantity(None) == "? "
    assert (seconds(0.01234), seconds(2.5)) == ("12.3 ms", "2.5 s")
    assert (memory(None), memory(5 * 10**8), memory(2 * 10**9)) == ("", "500 MB", "2.00 GB")
