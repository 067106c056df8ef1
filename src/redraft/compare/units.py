"""Numbers as people read them, and the parts of a results object that every report needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Results = Mapping[str, Any]
COLOURS = 6  # in the style sheet


def by_family(found: Results) -> list[Mapping[str, Any]]:
    """The settings, family by family."""
    order = {family: i for i, family in enumerate(found["study"]["families"])}
    return sorted(found["settings"], key=lambda row: order[row["family"]])


def primary(found: Results) -> str:
    """How people call the metric of the verdict."""
    return next(m["label"] for m in found["task"]["metrics"] if m["name"] == found["task"]["primary"])


def quantity(value: float | None) -> str:
    """``1234567`` -> ``1.23 M``, with the unit's prefix at the end."""
    if value is None:
        return "? "
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {prefix}"
    return f"{value:.3g} "


def seconds(value: float) -> str:
    """``0.0123`` -> ``12.3 ms``."""
    return f"{value * 1000:.3g} ms" if value < 1 else f"{value:.3g} s"


def memory(value: int | None) -> str:
    """Bytes in MB or GB."""
    if not value:
        return ""
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def shortened(text: str, most: int = 80) -> str:
    """A text on one line, its middle left out where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most // 2]} ... {line[-most // 2 :]}"


def probability(value: float) -> str:
    """A p-value, not more exact than it is."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def label_of(found: Results, name: str) -> str:
    """A setting as people call it."""
    return next((str(row["label"]) for row in found["settings"] if row["id"] == name), "the baseline")


def trained_as(found: Results, run: Mapping[str, Any]) -> str:
    """The family of a training, and what it was tried with."""
    if not found["study"]["dropouts"]:
        return str(run["family"])
    return f"{run['family']}, dropout {run['dropout']:g}" + ("" if run["kept"] else " (not kept)")


def colour(found: Results, family: str) -> int:
    """Number of a family's colour in the style sheet."""
    return list(found["study"]["families"]).index(family) % COLOURS
