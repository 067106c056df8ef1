"""How far a generation over rows is, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable

Log = Callable[[str], None]
_INTERVAL = 10.0  # seconds between two lines


class Progress:
    """Tells every ten seconds how many rows are finished, the rate of this run, and how long the rest takes.

    Args:
        total: rows of the source; None: not known.
        before: rows that earlier runs finished.
    """

    def __init__(self, log: Log, total: int | None, before: int) -> None:
        self.log, self.total, self.before = log, total, before
        self.rows, self.tokens, self.bad = 0, 0, 0
        self.begun = self.told = time.monotonic()

    def begin(self) -> None:
        """Count the time from now on."""
        self.begun = self.told = time.monotonic()

    @property
    def seconds(self) -> float:
        """Wall clock of this run."""
        return time.monotonic() - self.begun

    def add(self, rows: int, tokens: int, bad: int = 0) -> None:
        """Count finished rows, and tell the sums if it is time."""
        self.rows, self.tokens, self.bad = self.rows + rows, self.tokens + tokens, self.bad + bad
        if time.monotonic() - self.told >= _INTERVAL:
            self.told = time.monotonic()
            self.log(self.line())

    def line(self) -> str:
        """The sums in words."""
        finished, seconds = self.before + self.rows, max(self.seconds, 1e-9)
        rate = self.rows / seconds
        text = f"{finished:,}{f' of {self.total:,}' if self.total is not None else ''} rows"
        text += f", {self.bad:,} of them bad" if self.bad else ""
        text += f", {rate:,.1f} rows/s, {self.tokens / seconds:,.0f} tokens/s"
        if self.total is not None and rate and finished < self.total:
            text += f", {_time((self.total - finished) / rate)} left"
        return text


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
