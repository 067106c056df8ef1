"""docs/scaling.md holds the tables of ``redraft plan --scaling --machine h100``.

``python -m tests.docs.test_scaling_page`` writes them anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from redraft.planning import scaling
from redraft.planning.machine import MACHINES

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
_TABLES = re.compile(r"(?<=<!-- tables -->\n).*?(?=<!-- /tables -->)", re.DOTALL)
REMEDY = "run: python -m tests.docs.test_scaling_page"


def test_the_tables_are_those_that_the_command_prints() -> None:
    """One that costs little as a whole, and a row of others."""
    [listed] = _TABLES.findall(PAGE.read_text(encoding="utf-8"))
    assert scaling.crossing_table() in listed, REMEDY
    for table in (scaling.training_table, scaling.serving_table):
        assert table(MACHINES["h100"], ("7m",)).splitlines()[-1] in listed.splitlines(), REMEDY


def test_every_size_is_in_the_tables() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert all(text.count(f"\n| {size} |") == 2 for size in scaling.SIZES), REMEDY


if __name__ == "__main__":
    made = scaling.tables(MACHINES["h100"])
    PAGE.write_text(_TABLES.sub(lambda _: f"{made}\n", PAGE.read_text(encoding="utf-8")), encoding="utf-8")
