"""The tables of settings in the documentation are those that the declarations give.

``python -m tests.docs.test_settings_table`` writes them.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from redraft.options import table
from redraft.settings import DecisionSettings, Settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES: dict[str, type] = {"choosing.md": Settings, "decide.md": DecisionSettings}


def with_table(text: str, cls: type) -> str:
    """The page with the current table between its markers."""
    between = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
    return between.sub(lambda _: f"{table(cls)}\n", text)


@pytest.mark.parametrize("page", PAGES)
def test_the_documented_settings_are_the_declared_ones(page: str) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert "<!-- settings -->" in text
    assert text == with_table(text, PAGES[page]), "run: python -m tests.docs.test_settings_table"


if __name__ == "__main__":
    for name, settings in PAGES.items():
        path = DOCS / name
        path.write_text(with_table(path.read_text(encoding="utf-8"), settings), encoding="utf-8")
