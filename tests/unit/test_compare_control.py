"""A constraint that the references break can't be judged by likeness to them, and the reports say so."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from _studies import BEAM, MANY, record

from redraft.compare import markdown, report
from redraft.compare.control import held
from redraft.compare.material import Item
from redraft.compare.results import summarise


def constrained(regex: str) -> dict[str, Any]:
    """A study with the texts of the chosen settings told once more as written under a constraint."""
    study = record(constraint={"regex": regex})
    for name in (BEAM.id, MANY.id):
        study.cells += [{**cell, "kind": "control"} for cell in study.of("texts", part="test", id=name)]
    return summarise(study)


def verdicts(found: dict[str, Any]) -> tuple[str, str]:
    """What the two reports show of the last column of words under Control."""
    text = markdown.markdown(found).partition("## Control")[2].partition("## ")[0]
    page = report.html(found).partition("<h2>Control")[2].partition("<h2>")[0]
    (word,), (badge,) = re.findall(r"\| (same|better|worse|undecided|void) \|", text), re.findall(r"badge (\w+)", page)
    assert f"{found['control']['references']:.1f} % of the test references" in text
    assert f"{found['control']['references']:.1f} % of the test references" in page
    return word, badge


def test_the_share_of_references_that_satisfy_it() -> None:
    rows = [Item("", (text,), len(text.split()) + 1) for text in ("1 a", "2", "b c d", "3")]
    assert held({"regex": "[0-9].*"}, rows, True) == 75.0
    assert held({"length": "1"}, rows, True) == 50.0  # two of one token; end-of-text is not counted
    assert held({"length": "2"}, rows, False) == 50.0


def test_a_constraint_that_the_references_satisfy_is_judged() -> None:
    found = constrained("[a-z ]+")
    assert found["control"]["references"] == 100.0 and not found["control"]["void"]
    assert not any("test references" in note for note in found["caveats"])
    assert "void" not in verdicts(found)


def test_a_constraint_that_no_reference_satisfies_is_void() -> None:
    found = constrained("[0-9]+")
    assert found["control"]["references"] == 0.0 and found["control"]["void"]
    (note,) = (note for note in found["caveats"] if "test references" in note)
    assert note.startswith("None of") and "void" in note
    assert verdicts(found) == ("void", "void")
    assert found["verdict"]["lines"]  # the study itself stands


def test_a_constraint_that_some_references_break_is_judged_with_a_warning() -> None:
    found = constrained(".*(haus|rot).*")
    assert 5 < found["control"]["references"] < 95 and not found["control"]["void"]
    (note,) = (note for note in found["caveats"] if "test references" in note)
    assert note.startswith(f"Only {found['control']['references']:.0f} %")
    assert "void" not in verdicts(found)
