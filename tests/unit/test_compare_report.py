"""The report: self-contained, escaped, and there whatever became of the study."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from _studies import MANY, record

from redraft.compare import charts, markdown, report
from redraft.compare.results import summarise
from redraft.compare.units import memory, quantity, seconds

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


def full() -> dict[str, Any]:
    return summarise(record())


def test_a_page_holds_every_part() -> None:
    found = full()
    page = parsed(report.html(found))
    words = " ".join(page.words)
    for part in ("Quality against latency", "Speed, compute and memory", "Side by side", "Training", "How this was"):
        assert part in words
    for row in found["settings"]:
        assert row["label"] in words
    for line in found["verdict"]["lines"]:
        assert line["text"].partition(": ")[2] in words
    assert page.tags.count("svg") >= 4


def test_a_dominating_setting_stands_beside_the_chosen_ones() -> None:
    page = report.html(summarise(record(damage={MANY.id: 0.35})))
    (tiles,) = re.findall(r'<div class="tiles">.*?</dl></div></div>', page, re.S)
    assert "autoregressive, greedy" in tiles


def test_a_page_needs_nothing_from_elsewhere() -> None:
    page = report.html(full())
    assert not re.search(r"""(src|href)\s*=|url\(|@import|<script|<link|https?://""", page)
    assert "prefers-color-scheme: dark" in page and 'name="viewport"' in page


def test_what_models_and_users_write_is_escaped() -> None:
    study = record()
    study.test[0] = type(study.test[0])(EVIL, (EVIL,), 1)
    for cell in study.of("texts", part="test"):
        cell["texts"] = [EVIL] * len(cell["texts"])
    study.command, study.data["source"], study.data["notes"] = EVIL, EVIL, [EVIL]
    study.missing = [{"what": EVIL, "why": EVIL}]
    page = report.html(summarise(study))
    assert "<script" not in page and '<b>"' not in page
    assert any(EVIL in word or "alert('x')" in word for word in parsed(page).words)


@pytest.mark.parametrize("kinds", [set(), {"train"}, {"texts"}, {"race", "texts"}, {"floors"}, {"likelihood"}])
def test_partial_studies_render(kinds: set[str]) -> None:
    study = record()
    study.cells = [c for c in study.cells if c["kind"] in kinds]
    study.missing = [{"what": "training masked, seed 0", "why": "the loss is not finite"}]
    found = summarise(study)
    words = " ".join(parsed(report.html(found)).words)
    assert "the loss is not finite" in words
    assert "the loss is not finite" in markdown.markdown(found)


def test_a_void_study_says_so_and_gives_no_verdict_on_any_row() -> None:
    found = summarise(record(floor=0.0))
    page = report.html(found)
    words = parsed(page).words
    assert "Void comparison" in words
    badges = re.findall(r'class="badge (\w+)"', page)
    assert badges and set(badges) == {"void"}
    text = markdown.markdown(found)
    assert "**Void" in text and "Choose" not in text
    assert not re.search(r"\| (same|better|worse|undecided) \|", text)


def test_markdown_has_the_verdict_first_and_whole_tables() -> None:
    found = full()
    text = markdown.markdown(found)
    assert text.index(found["verdict"]["headline"]) < text.index("## ")
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines()}) == 1


def test_more_batch_sizes_make_the_speed_table_no_wider() -> None:
    def head(batches: tuple[int, ...]) -> list[str]:
        study = record()
        (race, *_) = study.of("race")
        study.cells = [c for c in study.cells if c["kind"] != "race"] + [{**race, "batch": batch} for batch in batches]
        table = report.html(summarise(study)).partition("<h2>Speed")[2].partition("</table>")[0]
        assert all(f'<div class="line">{batch}</div>' in table for batch in batches)
        return re.findall("<th>(.*?)</th>", table)

    assert head((1,)) == head((1, 8, 32))


def test_differences_far_off_keep_their_distance() -> None:
    """Every value has a place of its own inside the drawing, however far the others are."""
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


def test_units() -> None:
    assert quantity(1_234_567) == "1.23 M" and quantity(12.0) == "12 " and quantity(None) == "? "
    assert (seconds(0.01234), seconds(2.5)) == ("12.3 ms", "2.5 s")
    assert (memory(None), memory(5 * 10**8), memory(2 * 10**9)) == ("", "500 MB", "2.00 GB")
