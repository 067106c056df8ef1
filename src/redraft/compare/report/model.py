"""The content of a report: sections made of typed blocks, independent of how they are rendered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from redraft.compare.report.charts import Chart

Tone = Literal["good", "bad", "warn", "neutral"]


@dataclass(frozen=True)
class Point:
    """One line below a headline. ``head`` is emphasised."""

    head: str
    text: str


@dataclass(frozen=True)
class Chip:
    """A short remark beside a headline."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Headline:
    """The result in one or two sentences, with the evidence for it."""

    tag: str  # one or two words: ``Same quality``
    tone: Tone
    text: str
    points: Sequence[Point] = ()
    chips: Sequence[Chip] = ()


@dataclass(frozen=True)
class Caveats:
    """Sentences to read before relying on the numbers."""

    notes: Sequence[str]


@dataclass(frozen=True)
class Card:
    """One system in numbers: its main value large, and further facts below."""

    title: str
    role: str
    value: str
    unit: str
    detail: str
    facts: Sequence[tuple[str, str]]
    colour: int = 0


@dataclass(frozen=True)
class Cards:
    """Cards side by side."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Interval:
    """A difference with its interval and the margin of equivalence, drawn on an axis that a table's rows share."""

    value: float
    low: float
    high: float
    margin: float
    axis: tuple[float, float]
    colour: int


@dataclass(frozen=True)
class Cell:
    """A table cell. ``detail`` is small print such as an interval; with a tone the text is drawn as a badge."""

    text: str = ""
    detail: str = ""
    colour: int | None = None
    tags: Sequence[str] = ()
    tone: Tone | None = None
    drawing: Interval | None = None


Content = str | Cell | Sequence[str | Cell]  # a sequence: several lines, one below the other


@dataclass(frozen=True)
class Row:
    """A row of a table."""

    cells: Sequence[Content]
    kind: Literal["", "baseline", "muted"] = ""


@dataclass(frozen=True)
class Table:
    """A table. Column names may hold line breaks; a column without a name holds drawings, which text leaves out."""

    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Legend:
    """What a colour means in the charts of one block."""

    name: str
    colour: int
    hollow: bool = False


@dataclass(frozen=True)
class Panel:
    """A chart or a table with a title of its own."""

    title: str
    content: Chart | Table
    lead: str = ""


@dataclass(frozen=True)
class Panels:
    """Panels side by side, with one legend for all charts."""

    panels: Sequence[Panel]
    legend: Sequence[Legend] = ()


@dataclass(frozen=True)
class Sample:
    """A prompt, and what each source answers."""

    prompt: str
    answers: Sequence[tuple[str, str]]  # (source, text)


@dataclass(frozen=True)
class Samples:
    """Prompts with their answers."""

    samples: Sequence[Sample]


@dataclass(frozen=True)
class Facts:
    """Names and values, such as the settings of a run. With a summary they are folded away."""

    facts: Mapping[str, str]
    summary: str = ""


@dataclass(frozen=True)
class Listing:
    """A list of sentences."""

    title: str
    items: Sequence[str]


@dataclass(frozen=True)
class Command:
    """The command that made the report."""

    text: str


Block = Headline | Caveats | Cards | Table | Panels | Samples | Facts | Listing | Command


@dataclass(frozen=True)
class Section:
    """Blocks under a heading. Without a title they follow the section before."""

    title: str
    blocks: Sequence[Block]
    lead: str = ""


@dataclass(frozen=True)
class Report:
    """A report. ``kicker`` is the line above the title."""

    title: str
    sections: Sequence[Section] = field(default_factory=tuple)
    kicker: str = ""
    lead: str = ""
    footer: str = ""
