"""Charts as plain SVG, coloured by the report's style sheet so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 44
FONT = 11.0  # units; text is about 0.56 of that wide a letter


@dataclass(frozen=True)
class Scale:
    """Maps data to drawing units, straight or by logarithm."""

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


@dataclass(frozen=True)
class Mark:
    """A point with an interval, a name for the pointer, and maybe a label."""

    x: float
    y: float
    low: float
    high: float
    title: str
    label: str = ""
    strong: bool = False  # chosen: drawn larger, its label bold


@dataclass(frozen=True)
class Series:
    """Marks of one colour, joined by a line in their order."""

    name: str
    colour: int
    marks: Sequence[Mark]
    dashed: bool = False
    joined: bool = True


@dataclass
class Labels:
    """Places labels where they cover nothing placed before."""

    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)

    def reserve(self, x: float, y: float, radius: float) -> None:
        self.boxes.append((x - radius, y - radius, x + radius, y + radius))

    def place(self, x: float, y: float, text: str) -> tuple[float, float] | None:
        """Where the text starts and its baseline; None where there is no room."""
        width, height = len(text) * FONT * 0.56, FONT
        for dx, dy in ((8, -6), (-8 - width, -6), (8, 14), (-8 - width, 14), (-width / 2, -11), (-width / 2, 20)):
            box = (x + dx, y + dy - height + 2, x + dx + width, y + dy + 2)
            inside = box[0] >= LEFT and box[2] <= WIDTH - 2 and box[1] >= TOP - 8 and box[3] <= HEIGHT - BOTTOM
            if inside and not any(_overlap(box, other) for other in self.boxes):
                self.boxes.append(box)
                return x + dx, y + dy
        return None


def scatter(series: Sequence[Series], x_label: str, y_label: str, about: str, log_x: bool = True) -> str:
    """Points with intervals, joined series by series. Empty where there is nothing to draw."""
    marks = [m for s in series for m in s.marks]
    if not marks:
        return ""
    x = Scale.around([m.x for m in marks], LEFT, WIDTH - RIGHT, log_x)
    y = Scale.around([v for m in marks for v in (m.low, m.high)], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y, x_label, y_label)]
    labels = Labels()
    for mark in marks:
        labels.reserve(x(mark.x), y(mark.y), 6)
    for one in series:
        if one.joined and len(one.marks) > 1:
            path = " ".join(f"{x(m.x):.1f},{y(m.y):.1f}" for m in one.marks)
            dash = ' stroke-dasharray="4 3"' if one.dashed else ""
            parts.append(f'<polyline class="line c{one.colour}" points="{path}"{dash}/>')
    for one in series:
        parts += [_mark(m, one, x, y) for m in one.marks]
    for mark in sorted(marks, key=lambda m: not m.strong):
        place = labels.place(x(mark.x), y(mark.y), mark.label) if mark.label else None
        if place:
            weight = ' class="strong"' if mark.strong else ""
            parts.append(f'<text x="{place[0]:.1f}" y="{place[1]:.1f}"{weight}>{escape(mark.label)}</text>')
    return _svg("".join(parts), about)


def lines(series: Sequence[Series], x_label: str, y_label: str, about: str) -> str:
    """Curves with their last point marked."""
    marks = [m for s in series for m in s.marks]
    if not marks:
        return ""
    x = Scale.around([m.x for m in marks] + [0.0], LEFT, WIDTH - RIGHT, margin=0.03)
    y = Scale.around([m.y for m in marks], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y, x_label, y_label)]
    for one in series:
        points = [(x(m.x), y(m.y)) for m in one.marks]
        dash = ' stroke-dasharray="4 3"' if one.dashed else ""
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="line c{one.colour}" points="{path}"{dash}/>')
        for (a, b), mark in zip(points, one.marks, strict=True):
            radius = 4 if mark.strong else 2
            title = escape(mark.title)
            parts.append(f'<circle class="dot c{one.colour}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}">')
            parts.append(f"<title>{title}</title></circle>")
    return _svg("".join(parts), about)


def groups(names: Sequence[str], series: Sequence[Series], x_label: str, y_label: str, about: str) -> str:
    """Points with intervals in named groups side by side; ``Mark.x`` is the number of the group."""
    marks = [m for s in series for m in s.marks]
    if not marks:
        return ""
    x = Scale(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT)
    y = Scale.around([v for m in marks for v in (m.low, m.high)], HEIGHT - BOTTOM, TOP)
    parts = [_grid(x, y, x_label, y_label, ticks=False)]
    for i, name in enumerate(names):
        for line, text in enumerate(name.split("\n")):
            at = HEIGHT - BOTTOM + 13 + 11 * line
            small = ' class="small"' if line else ""
            parts.append(f'<text x="{x(i):.1f}" y="{at}" text-anchor="middle"{small}>{escape(text)}</text>')
    for number, one in enumerate(series):
        shift = (number - (len(series) - 1) / 2) * min(0.16, 0.7 / len(series))
        moved = [Mark(m.x + shift, m.y, m.low, m.high, m.title, strong=True) for m in one.marks]
        parts += [_mark(m, one, x, y) for m in moved]
    return _svg("".join(parts), about)


def forest(difference: float, low: float, high: float, margin: float, axis: tuple[float, float], colour: int) -> str:
    """A small difference with its interval, the margin as a band around zero. Positive is to the right.

    Args:
        axis: the least and the greatest value that has room; the same for all that are to be compared by eye.
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


def number(value: float) -> str:
    """A tick label: no more digits than needed."""
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


def _mark(mark: Mark, series: Series, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    a, b, low, high = x(mark.x), y(mark.y), y(mark.low), y(mark.high)
    radius = 5.5 if mark.strong else 3.5
    hollow = " hollow" if series.dashed else ""
    shape = (
        f'<circle class="dot c{series.colour}{hollow}" cx="{a:.1f}" cy="{b:.1f}" r="{radius}"/>'
        if series.colour == 0
        else f'<rect class="dot c{series.colour}{hollow}" x="{a - radius:.1f}" y="{b - radius:.1f}" '
        f'width="{2 * radius}" height="{2 * radius}" rx="1.5" transform="rotate(45 {a:.1f} {b:.1f})"/>'
    )
    interval = f'<line class="whisker c{series.colour}" x1="{a:.1f}" x2="{a:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
    return f"<g>{interval}{shape}<title>{escape(mark.title)}</title></g>"


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.999)
