"""Renders a report as one self-contained HTML page: no scripts, no fonts and no images from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from redraft.compare.report.charts import forest
from redraft.compare.report.model import (
    Block,
    Card,
    Cards,
    Caveats,
    Cell,
    Command,
    Content,
    Facts,
    Headline,
    Legend,
    Listing,
    Panel,
    Panels,
    Report,
    Row,
    Sample,
    Samples,
    Section,
    Table,
)


def render_html(report: Report) -> str:
    """One self-contained page. All text is escaped."""
    style = files("redraft.compare.report").joinpath("style.css").read_text(encoding="utf-8")
    kicker = f'<p class="kicker">{escape(report.kicker)}</p>' if report.kicker else ""
    lead = f'<p class="lead">{escape(report.lead)}</p>' if report.lead else ""
    parts = [f"<header>{kicker}<h1>{escape(report.title)}</h1>{lead}</header>"]
    parts += [_section(section) for section in report.sections]
    parts += [f"<footer>{escape(report.footer)}</footer>"] if report.footer else []
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>redraft: {escape(report.title)}</title>\n'
        f"<style>\n{style}</style></head>\n<body><main>\n{body}\n</main></body></html>\n"
    )


def _section(section: Section) -> str:
    title = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    return title + lead + "".join(map(_block, section.blocks))


def _block(block: Block) -> str:
    match block:
        case Headline():
            return _headline(block)
        case Caveats():
            return f'<div class="notes"><h3>Caveats</h3>{_list(block.notes)}</div>' if block.notes else ""
        case Cards():
            return f'<div class="tiles">{"".join(map(_card, block.cards))}</div>'
        case Table():
            return _table(block)
        case Panels():
            wide = " after" if len(block.panels) > 1 else " single after"
            return f'{_legend(block.legend)}<div class="pair{wide}">{"".join(map(_panel, block.panels))}</div>'
        case Samples():
            return "".join(map(_sample, block.samples))
        case Facts():
            return _facts(block)
        case Listing():
            return f'<div class="notes"><h3>{escape(block.title)}</h3>{_list(block.items)}</div>'
        case Command():
            return f"<pre><code>{escape(block.text)}</code></pre>"


def _headline(block: Headline) -> str:
    points = "".join(f"<li><b>{escape(point.head)}</b>: {escape(point.text)}</li>" for point in block.points)
    chips = "".join(
        f'<span class="chip{" warn" if chip.warning else ""}">{escape(chip.text)}</span>' for chip in block.chips
    )
    return (
        f'<section class="verdict {block.tone}"><div class="tag">{escape(block.tag)}</div>'
        f'<p class="big">{escape(block.text)}</p>{f"<ul>{points}</ul>" if points else ""}'
        f"{f'<div class=chips>{chips}</div>' if chips else ''}</section>"
    )


def _card(card: Card) -> str:
    facts = "".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in card.facts)
    return (
        f'<div class="tile k{card.colour}"><h3>{escape(card.title)}</h3><p class="role">{escape(card.role)}</p>'
        f'<p class="score">{escape(card.value)} <small>{escape(card.unit)}</small></p>'
        f'<p class="span">{escape(card.detail)}</p><dl>{facts}</dl></div>'
    )


def _legend(entries: Sequence[Legend]) -> str:
    spans = [
        f'<span class="k{entry.colour}"><i{" class=ring" if entry.hollow else ""}></i>{escape(entry.name)}</span>'
        for entry in entries
    ]
    return f'<div class="legend">{"".join(spans)}</div>' if spans else ""


def _panel(panel: Panel) -> str:
    title = f"<h3>{escape(panel.title)}</h3>" if panel.title else ""
    lead = f'<p class="lead">{escape(panel.lead)}</p>' if panel.lead else ""
    content = _table(panel.content) if isinstance(panel.content, Table) else panel.content.svg()
    return f'<div class="card">{title}{lead}{content}</div>'


def _sample(sample: Sample) -> str:
    lines = "".join(f'<div class="who">{escape(who)}</div>{_text(text)}' for who, text in sample.answers)
    return f'<div class="card sample"><p class="given">{escape(sample.prompt)}</p><div class="said">{lines}</div></div>'


def _text(text: str) -> str:
    return f'<div class="text">{escape(text)}</div>' if text.strip() else '<div class="text none">(empty)</div>'


def _facts(block: Facts) -> str:
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in block.facts.items())
    table = f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>{escape(block.summary)}</summary>{table}</details>" if block.summary else table


def _list(items: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>"


def _table(table: Table) -> str:
    left = [' class="left"' if _words(table, at) else "" for at in range(len(table.columns))]
    names = zip(left, table.columns, strict=True)
    top = "".join(f"<th{side}>{escape(name).replace(chr(10), '<br>')}</th>" for side, name in names)
    rows = "".join(_row(row, left) for row in table.rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>'


def _words(table: Table, at: int) -> bool:
    """A column of words: each of its cells begins with a letter. It is aligned left, others right."""
    cells = [row.cells[at] for row in table.rows if at < len(row.cells)]
    return bool(cells) and all(isinstance(cell, str) and cell[:1].isalpha() for cell in cells)


def _row(row: Row, left: Sequence[str]) -> str:
    kind = f' class="{row.kind}"' if row.kind else ""
    cells = "".join(f"<td{side}>{_content(cell)}</td>" for side, cell in zip(left, row.cells, strict=False))
    return f"<tr{kind}>{cells}</tr>"


def _content(content: Content) -> str:
    """A cell; of several lines each has its own height, so that lines of one row stay level."""
    if isinstance(content, str):
        return escape(content)
    if isinstance(content, Cell):
        return _cell(content)
    return "".join(f'<div class="line">{_content(line) or "&nbsp;"}</div>' for line in content)


def _cell(cell: Cell) -> str:
    if cell.drawing is not None:
        one = cell.drawing
        return forest(one.value, one.low, one.high, one.margin, one.axis, one.colour)
    spot = "" if cell.colour is None else f'<span class="spot k{cell.colour}"></span>'
    text = escape(cell.text)
    if cell.tone is not None and cell.text:
        text = f'<span class="badge {cell.tone}">{text}</span>'
    detail = f" <small>{escape(cell.detail)}</small>" if cell.detail else ""
    return spot + text + detail + "".join(f'<span class="pick">{escape(tag)}</span>' for tag in cell.tags)
