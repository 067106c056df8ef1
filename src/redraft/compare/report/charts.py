"""Charts drawn as plain SVG. The style sheet of the report colours them, so they follow light and dark mode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Protocol

COLOURS = 6  # in the style sheet
WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44
FONT = 11.0  # drawing units; a letter is about 0.56 of that wide


class Chart(Protocol):
    """A chart: a drawing, and the same numbers as a table."""

    def svg(self) -> str:
        """The drawing; empty if there is nothing to draw."""
        ...

    def table(self) -> list[list[str]]:
        """Column names and rows with the numbers of every mark; only column names if there is nothing to draw."""
        ...


@dataclass(frozen=True)
class Mark:
    """A point with an interval.

    ``name`` identifies it in the table and the tooltip, ``label`` is written beside it, and ``strong`` draws it larger.
    """

    x: float
    y: float
    low: float
    high: float
    name: str
    label: str = ""
    strong: bool = False

    @property
    def value(self) -> str:
        """The value with its interval, if it has one."""
        return f"{self.y:.2f}" + (f" ({self.low:.2f} to {self.high:.2f})" if self.high > self.low else "")


@dataclass(frozen=True)
class Series:
    """Marks of one colour, in their order joined by a line."""

    name: str
    colour: int
    marks: Sequence[Mark]
    hollow: bool = False  # hollow marks and a dashed line
    joined: bool = True


@dataclass(frozen=True)
class Scatter:
    """Points with intervals over a logarithmic axis, joined series by series."""

    series: Sequence[Series]
    x_label: str
    y_label: str
    about: str  # what the chart shows, for screen readers

    def svg(self) -> str:
        marks = [m for s in self.series for m in s.marks]
        if not marks:
            return ""
        x = Scale.around([m.x for m in marks], LEFT, WIDTH - RIGHT, log=True)
        y = Scale.around([v for m in marks for v in (m.low, m.high)], HEIGHT - BOTTOM, TOP)
        parts = [_grid(x, y, f"{self.x_label}, log scale", self.y_label)]
        parts += [_line(s, x, y) for s in self.series if s.joined and len(s.marks) > 1]
        parts += [_mark(m, s, x, y) for s in self.series for m in s.marks]
        return _svg("".join(parts) + _labels(marks, x, y), self.about)

    def table(self) -> list[list[str]]:
        head = ["", self.x_label, f"{self.y_label} (95 % interval)"]
        named = {m.name: m for s in self.series for m in s.marks}.values()
        return [head, *([m.name, f"{m.x:.4g}", m.value] for m in named)]


@dataclass(frozen=True)
class Curves:
    """Lines over a linear axis that begins at zero."""

    series: Sequence[Series]
    x_label: str
    y_label: str
    about: str

    def svg(self) -> str:
        marks = [m for s in self.series for m in s.marks]
        if not marks:
            return ""
        x = Scale.around([m.x for m in marks] + [0.0], LEFT, WIDTH - RIGHT, margin=0.03)
        y = Scale.around([m.y for m in marks], HEIGHT - BOTTOM, TOP)
        parts = [_grid(x, y, self.x_label, self.y_label)]
        for one in self.series:
            parts.append(_line(one, x, y))
            for mark in one.marks:
                parts.append(f'<circle class="dot c{one.colour}" cx="{x(mark.x):.1f}" cy="{y(mark.y):.1f}" ')
                parts.append(f'r="{4 if mark.strong else 2}"><title>{escape(mark.name)}</title></circle>')
        return _svg("".join(parts), self.about)

    def table(self) -> list[list[str]]:
        head = ["", self.x_label, self.y_label]
        return [head, *([s.name, f"{m.x:.3g}", f"{m.y:.3f}"] for s in self.series for m in s.marks)]


@dataclass(frozen=True)
class Groups:
    """Points with intervals in named groups side by side; ``Mark.x`` is the number of the group."""

    names: Sequence[str]  # second lines are written smaller
    series: Sequence[Series]
    x_label: str
    y_label: str
    about: str

    def svg(self) -> str:
        marks = [m for s in self.series for m in s.marks]
        if not marks:
            return ""
        x = Scale(-0.5, len(self.names) - 0.5, LEFT, WIDTH - RIGHT)
        y = Scale.around([v for m in marks for v in (m.low, m.high)], HEIGHT - BOTTOM, TOP)
        parts = [_grid(x, y, self.x_label, self.y_label, ticks=False)]
        for i, name in enumerate(self.names):
            for line, text in enumerate(name.split("\n")):
                at = HEIGHT - BOTTOM + 13 + 11 * line
                small = ' class="small"' if line else ""
                parts.append(f'<text x="{x(i):.1f}" y="{at}" text-anchor="middle"{small}>{escape(text)}</text>')
        for number, one in enumerate(self.series):
            shift = (number - (len(self.series) - 1) / 2) * min(0.16, 0.7 / len(self.series))
            moved = [Mark(m.x + shift, m.y, m.low, m.high, m.name, strong=True) for m in one.marks]
            parts += [_mark(m, one, x, y) for m in moved]
        return _svg("".join(parts), self.about)

    def table(self) -> list[list[str]]:
        head = [self.x_label, *(s.name for s in self.series)]
        at = [{m.x: m.value for m in s.marks} for s in self.series]
        rows = [[n.replace("\n", ", "), *(values.get(i, "") for values in at)] for i, n in enumerate(self.names)]
        return [head, *rows]


def forest(difference: float, low: float, high: float, margin: float, axis: tuple[float, float], colour: int) -> str:
    """A small drawing of a difference with its interval; a band around zero shows the margin. Positive is right.

    Args:
        axis: least and greatest value, the same for all drawings that are compared by eye.
    """
    width, height = 140, 18
    x = Scale(*axis, 5, width - 5)
    band = (x(-margin), x(margin))
    return (
        f'<svg class="forest" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<rect class="band" x="{band[0]:.1f}" y="1" width="{band[1] - band[0]:.1f}" '
        f'height="{height - 2}" rx="2"/>'
        f'<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height}"/>'
        f'<line class="line c{colour}" x1="{x(low):.1f}" x2="{x(high):.1f}" y1="9" y2="9"/>'
        f'<circle class="dot c{colour}" cx="{x(difference):.1f}" cy="9" r="3.5"/></svg>'
    )


@dataclass(frozen=True)
class Scale:
    """Maps data to drawing units, linearly or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def around(
        cls, values: Sequence[float], start: float, end: float, log: bool = False, margin: float = 0.07
    ) -> Scale:
        """A scale that holds the values with some room at both ends."""
        low, high = min(values), max(values)
        if log:
            low, high = math.log10(max(low, 1e-12)), math.log10(max(high, 1e-12))
        room = (high - low) * margin or max(abs(high) * 0.1, 0.1)
        low, high = low - room, high + room
        return cls(10**low, 10**high, start, end, True) if log else cls(low, high, start, end)

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        at = math.log10(max(value, 1e-12)) if self.log else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the scale."""
        if not self.log:
            step = _round_step((self.high - self.low) / most)
            first = math.ceil(self.low / step)
            return [round(i * step, 12) for i in range(first, math.floor(self.high / step) + 1)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for parts in ((1, 2, 5), (1, 3), (1,)):
            found = [p * 10.0**e for e in powers for p in parts if self.low <= p * 10.0**e <= self.high]
            if len(found) <= most + 2 or parts == (1,):
                return found
        return []


@dataclass
class Labels:
    """Finds places for labels that cover no mark and no other label."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def reserve(self, x: float, y: float, radius: float) -> None:
        """Keep the place of a mark free."""
        self.boxes.append((x - radius, y - radius, x + radius, y + radius))

    def place(self, x: float, y: float, text: str) -> tuple[float, float] | None:
        """Start of the text and its baseline; None if there is no room."""
        width, height = len(text) * FONT * 0.56, FONT
        for dx, dy in ((8, -6), (-8 - width, -6), (8, 14), (-8 - width, 14), (-width / 2, -11), (-width / 2, 20)):
            box = (x + dx, y + dy - height + 2, x + dx + width, y + dy + 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in self.boxes):
                self.boxes.append(box)
                return x + dx, y + dy
        return None


def number(value: float) -> str:
    """A tick label with no more digits than needed."""
    if value and abs(value) >= 1e4:
        for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
            if abs(value) >= size:
                return f"{value / size:g}{unit}"
    return f"{value:.10g}".replace("-", "−")


def _svg(content: str, about: str) -> str:
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(about)}">{content}</svg>'


def _grid(x: Scale, y: Scale, x_label: str, y_label: str, ticks: bool = True) -> str:
    bottom = HEIGHT - BOTTOM
    parts = []
    for value in y.ticks():
        at = y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 3.5:.1f}" text-anchor="end">{number(value)}</text>')
    for value in x.ticks() if ticks else []:
        at = x(value)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{number(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    centre = (TOP + bottom) / 2
    turned = f'transform="rotate(-90 12 {centre})"'
    parts.append(f'<text class="name" x="12" y="{centre}" text-anchor="middle" {turned}>{escape(y_label)}</text>')
    return "".join(parts)


def _line(series: Series, x: Scale, y: Scale) -> str:
    path = " ".join(f"{x(m.x):.1f},{y(m.y):.1f}" for m in series.marks)
    dash = ' stroke-dasharray="4 3"' if series.hollow else ""
    return f'<polyline class="line c{series.colour}" points="{path}"{dash}/>'


def _labels(marks: Sequence[Mark], x: Scale, y: Scale) -> str:
    """The labels of all marks that have one and for which there is room."""
    labels, parts = Labels(), []
    for mark in marks:
        labels.reserve(x(mark.x), y(mark.y), 6)
    for mark in sorted(marks, key=lambda m: not m.strong):
        place = labels.place(x(mark.x), y(mark.y), mark.label) if mark.label else None
        if place:
            weight = ' class="strong"' if mark.strong else ""
            parts.append(f'<text x="{place[0]:.1f}" y="{place[1]:.1f}"{weight}>{escape(mark.label)}</text>')
    return "".join(parts)


def _mark(mark: Mark, series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    a, b, low, high = x(mark.x), y(mark.y), y(mark.low), y(mark.high)
    radius = 5.5 if mark.strong else 3.5
    hollow = " hollow" if series.hollow else ""
    shape = (
        f'<circle class="dot c{series.colour}{hollow}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>'
        if series.colour == 0
        else f'<rect class="dot c{series.colour}{hollow}" x="{a - radius:.1f}" y="{b - radius:.1f}" '
        f'width="{2 * radius}" height="{2 * radius}" rx="1.5" transform="rotate(45 {a:.1f} {b:.1f})"/>'
    )
    interval = f'<line class="whisker c{series.colour}" x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    return f"<g>{interval}{shape}<title>{escape(f'{mark.name}: {mark.value}')}</title></g>"


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
