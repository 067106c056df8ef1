"""docs/benchmarks.md lists every benchmark, as its class declares it.

``python -m tests.docs.test_benchmarks_page`` writes the list anew.
"""

from __future__ import annotations

import re
from pathlib import Path

from redraft.registry import find, names

PAGE = Path(__file__).parents[2] / "docs" / "benchmarks.md"
_LIST = re.compile(r"(?<=<!-- benchmarks -->\n).*?(?=<!-- /benchmarks -->)", re.DOTALL)
_ANSWERS = {"generate": "generated", "choose": "chosen by likelihood", "infill": "infilled"}


def table() -> str:
    """A Markdown table of the benchmarks."""
    head = "| name | version | what it measures | parts | examples | answers | source |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for name in names("tasks.benchmarks"):
        one = find("tasks.benchmarks", name)()
        parts = ", ".join(filter(None, one.sources))
        cells = (f"`{name}`", one.version, one.summary, parts, one.shots or "", _ANSWERS[one.answering], one.citation)
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def test_the_page_lists_every_benchmark() -> None:
    [listed] = _LIST.findall(PAGE.read_text(encoding="utf-8"))
    assert listed == f"{table()}\n", "run: python -m tests.docs.test_benchmarks_page"


if __name__ == "__main__":
    PAGE.write_text(_LIST.sub(lambda _: f"{table()}\n", PAGE.read_text(encoding="utf-8")), encoding="utf-8")
