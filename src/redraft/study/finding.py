"""The outcome of a claim's experiment: a verdict with its numbers, tables and figures, as plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from redraft import config
from redraft.errors import UserError

Verdict = Literal["holds", "in part", "not seen", "open"]
VERDICTS: dict[str, str] = {
    "holds": "confirmed here, for these models and data",
    "in part": "confirmed under the conditions that are stated",
    "not seen": "tested and not confirmed",
    "open": "no experiment here can tell yet",
}


@dataclass(frozen=True)
class Mark:
    """A point of a figure, with an interval if ``low`` < ``high``."""

    x: float
    y: float
    low: float
    high: float
    label: str = ""


@dataclass(frozen=True)
class Line:
    """The points of one series."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Figure:
    """A chart: ``scatter`` over a logarithmic axis, ``curves`` over a linear one."""

    title: str
    kind: Literal["scatter", "curves"]
    x: str
    y: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Sheet:
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Number:
    """A measured value with its 95 % interval, one row of the table ``number`` of the store."""

    task: str
    model: str
    setting: str
    metric: str
    value: float
    low: float
    high: float
    seeds: int


@dataclass(frozen=True)
class Finding:
    """What an analysis concludes."""

    verdict: Verdict
    text: str  # one or two sentences with the numbers that decide
    figures: tuple[Figure, ...] = ()
    tables: tuple[Sheet, ...] = ()
    numbers: tuple[Number, ...] = ()
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyRecord:
    """The finding of a claim and how it came about. It is all that the report and ``docs/claims.md`` need."""

    id: str
    claim: str
    source: str
    compares: str
    rule: str
    budget: str
    seeds: int
    finding: Finding
    setup: dict[str, str]  # data, models, training and machine, in words
    command: str
    made: str
    seconds: float  # of all its cells together
    cells: int

    @property
    def preliminary(self) -> bool:
        """One seed: the variance between training runs is unknown."""
        return self.seeds == 1

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n"

    @classmethod
    def of_json(cls, text: str, where: str) -> Self:
        """The record that ``to_json`` wrote.

        Raises:
            UserError: it is not such a record.
        """
        try:
            values: Any = json.loads(text)
        except ValueError as error:
            raise UserError(f"'{where}' holds a finding that is not JSON: {error}.", "Run the claim again.") from None
        return config.build(cls, values, where)


def opened(text: str, caveats: Sequence[str] = ()) -> Finding:
    """A finding that leaves the claim open, with the reason."""
    return Finding("open", text, caveats=tuple(caveats))
