"""Renders a report as Markdown. It has every word and number of the HTML page; charts become tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from redraft.compare.report.model import (
    Block,
    Cards,
    Caveats,
    Cell,
    Command,
    Content,
    Facts,
    Headline,
    Listing,
    Panel,
    Panels,
    Report,
    Row,
    Sample,
    Samples,
    Table,
)

_ACTIVE = re.compile(r"[\\`*<]|\[(?=[^\]]*\]\()|(?<!\w)_|_(?!\w)")  # what Markdown would not show as it is written


def render_markdown(report: Report) -> str:
    """The report as Markdown text."""
    parts = [f"# {_escape(report.title)}"]
    parts += [_escape(line) for line in (report.kicker, report.lead) if line]
    for section in report.sections:
        parts += [f"## {_escape(section.title)}"] if section.title else []
        parts += [_escape(section.lead)] if section.lead else []
        parts += [text for block in section.blocks for text in _block(block)]
    parts += [_escape(report.footer)] if report.footer else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> list[str]:
    """Paragraphs of one block."""
    match block:
        case Headline():
            return _headline(block)
        case Caveats():
            return ["### Caveats", _bullets(block.notes)] if block.notes else []
        case Cards():
            return [_cards(block)]
        case Table():
            return [_table(block)]
        case Panels():
            return [text for panel in block.panels for text in _panel(panel)]
        case Samples():
            return [text for sample in block.samples for text in _sample(sample)]
        case Facts():
            listed = "\n".join(f"- {_escape(key)}: {_escape(value)}" for key, value in block.facts.items())
            return [f"### {_escape(block.summary)}", listed] if block.summary else [listed]
        case Listing():
            return [f"### {_escape(block.title)}", _bullets(block.items)]
        case Command():
            return [_fenced(block.text)]


def _headline(block: Headline) -> list[str]:
    points = [f"- **{_escape(point.head)}**: {_escape(point.text)}" for point in block.points]
    chips = "; ".join(_escape(chip.text) for chip in block.chips)
    return [f"**{_escape(f'{block.tag}. {block.text}')}**", "\n".join(points), f"({chips})" if chips else ""]


def _cards(block: Cards) -> str:
    """One column for each card."""
    names = list(dict.fromkeys(name for card in block.cards for name, _ in card.facts))
    rows = [["role", *(card.role for card in block.cards)]]
    rows += [["value", *(f"{card.value} {card.unit}, {card.detail}" for card in block.cards)]]
    rows += [[name, *(dict(card.facts).get(name, "") for card in block.cards)] for name in names]
    return _lines(["", *(card.title for card in block.cards)], rows)


def _panel(panel: Panel) -> list[str]:
    title = [f"### {_escape(panel.title)}"] if panel.title else []
    lead = [_escape(panel.lead)] if panel.lead else []
    if isinstance(panel.content, Table):
        return [*title, *lead, _table(panel.content)]
    head, *rows = panel.content.table()
    return [*title, *lead, _lines(head, rows)] if rows else []


def _sample(sample: Sample) -> list[str]:
    answers = [f"- {_escape(who)}: {_text(text)}" for who, text in sample.answers]
    return [f"**Prompt**: {_text(sample.prompt)}", "\n".join(answers)]


def _text(text: str) -> str:
    """Text of a model or of the data. Several lines become a fenced block in the list item."""
    if not text.strip():
        return "(empty)"
    if "\n" in text:
        return "\n\n" + "\n".join(f"  {line}".rstrip() for line in _fenced(text).splitlines()) + "\n"
    return _escape(text)


def _table(table: Table) -> str:
    """Columns without a name hold drawings and are left out. Lines of a cell become rows of their own."""
    shown = [i for i, name in enumerate(table.columns) if name or i == 0]
    rows = [[line[i] for i in shown] for row in table.rows for line in _split(row)]
    return _lines([table.columns[i] for i in shown], rows)


def _split(row: Row) -> list[list[str]]:
    """The lines of a row; what has only one line is written in the first."""
    columns = [
        [_plain(cell)] if isinstance(cell, str | Cell) else [_plain(line) for line in cell] for cell in row.cells
    ]
    height = max(len(column) for column in columns)
    return [[column[i] if i < len(column) else "" for column in columns] for i in range(height)]


def _plain(content: Content) -> str:
    if isinstance(content, str):
        return content
    assert isinstance(content, Cell)
    detail = f" ({content.detail})" if content.detail else ""
    return content.text + detail + (f" [{', '.join(content.tags)}]" if content.tags else "")


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---"] + ["---:"] * (len(head) - 1)
    listed = [map(_in_table, head), rule, *(map(_in_table, row) for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in listed)


def _in_table(text: str) -> str:
    return _escape(" ".join(text.split())).replace("|", "\\|")


def _bullets(items: Sequence[str]) -> str:
    return "\n".join(f"- {_escape(item)}" for item in items)


def _fenced(text: str) -> str:
    """A code block with a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _escape(text: str) -> str:
    return _ACTIVE.sub(lambda found: f"\\{found[0]}", text)
