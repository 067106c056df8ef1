"""The table of generation settings in the documentation is the one that the declarations give.

``python -m tests.docs.test_settings_table`` writes it.
"""

from __future__ import annotations

import re
from pathlib import Path

from redraft.options import table
from redraft.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "choosing.md"


def with_table(text: str) -> str:
    """The page with the current table between its markers."""
    between = re.compile(r"(?<=<!-- settings -->\n).*?(?=<!-- /settings -->)", re.DOTALL)
    return between.sub(lambda _: f"{table(Settings)}\n", text)


def test_the_documented_settings_are_the_declared_ones() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "<!-- settings -->" in text
    assert text == with_table(text), "run: python -m tests.docs.test_settings_table"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
