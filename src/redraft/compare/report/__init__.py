"""Reports: one model made of typed sections, rendered to HTML and to Markdown.

::

    report = Report("A or B?", [Section("Quality", [Table(["system", "BLEU"], [Row(["A", "31.4"])])])])
    render_html(report)      # one self-contained page
    render_markdown(report)  # the same words and numbers
"""

from redraft.compare.report.charts import Chart, Curves, Groups, Mark, Scatter, Series
from redraft.compare.report.html import render_html
from redraft.compare.report.markdown import render_markdown
from redraft.compare.report.model import (
    Block,
    Card,
    Cards,
    Caveats,
    Cell,
    Chip,
    Command,
    Content,
    Facts,
    Headline,
    Interval,
    Legend,
    Listing,
    Panel,
    Panels,
    Point,
    Report,
    Row,
    Sample,
    Samples,
    Section,
    Table,
    Tone,
)

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Caveats",
    "Cell",
    "Chart",
    "Chip",
    "Command",
    "Content",
    "Curves",
    "Facts",
    "Groups",
    "Headline",
    "Interval",
    "Legend",
    "Listing",
    "Mark",
    "Panel",
    "Panels",
    "Point",
    "Report",
    "Row",
    "Sample",
    "Samples",
    "Scatter",
    "Section",
    "Series",
    "Table",
    "Tone",
    "render_html",
    "render_markdown",
]
