"""A constraint that the references don't satisfy can't be judged by similarity to them, and the reports say so."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _studies import constrained

from redraft.compare.analysis import analyse
from redraft.compare.constraint_study import share_satisfied
from redraft.compare.record import Record
from redraft.compare.report import render_html, render_markdown
from redraft.compare.sections import study_report
from redraft.evaluation.items import Item


def verdicts(record: Record) -> tuple[str, str]:
    """The verdict under the constraint in both renderings of the report."""
    assert record.constraint_study is not None
    report = study_report(record)
    text = render_markdown(report).partition("## Constrained decoding")[2].partition("## ")[0]
    page = render_html(report).partition("<h2>Constrained decoding")[2].partition("<h2>")[0]
    (word,) = re.findall(r"\| (same|better|worse|undecided|inconclusive) \|", text)
    (badge,) = re.findall(r'class="badge \w+">(\w+)<', page)
    share = f"{record.constraint_study.references:.1f} % of the test references"
    assert share in text and share in page
    return word, badge


def caveat(record: Record) -> list[str]:
    return [note for note in record.caveats if "of the test references" in note]


def test_the_share_of_references_that_satisfy_it() -> None:
    rows = [Item("", (text,), len(text.split()) + 1) for text in ("1 a", "2", "b c d", "3")]
    assert share_satisfied({"regex": "[0-9].*"}, rows, True) == 75.0
    assert share_satisfied({"length": "1"}, rows, True) == 50.0  # two of one token; end-of-text is not counted
    assert share_satisfied({"length": "2"}, rows, False) == 50.0


def test_a_constraint_that_the_references_satisfy_is_judged() -> None:
    record = analyse(constrained("[a-z ]+"))
    assert record.constraint_study is not None
    assert record.constraint_study.references == 100.0 and not record.constraint_study.inconclusive
    assert caveat(record) == []
    assert "inconclusive" not in verdicts(record)


def test_a_constraint_that_no_reference_satisfies_is_inconclusive() -> None:
    record = analyse(constrained("[0-9]+"))
    assert record.constraint_study is not None
    assert record.constraint_study.references == 0.0 and record.constraint_study.inconclusive
    assert len(caveat(record)) == 1
    assert verdicts(record) == ("inconclusive", "inconclusive")
    assert record.verdict.lines  # the study itself has a verdict


def test_a_constraint_that_some_references_break_is_judged_with_a_caveat() -> None:
    record = analyse(constrained(".*(haus|rot).*"))
    assert record.constraint_study is not None
    assert 5 < record.constraint_study.references < 95 and not record.constraint_study.inconclusive
    assert len(caveat(record)) == 1
    assert "inconclusive" not in verdicts(record)
