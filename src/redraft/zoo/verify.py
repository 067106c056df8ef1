"""Check a shipped checkpoint: its files are intact, and it still reaches the figures of its card on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from redraft.shipped import zoo_folder
from redraft.zoo.build import results
from redraft.zoo.card import Measured, read_record
from redraft.zoo.files import check
from redraft.zoo.recipes import entry

_INTERVAL = (
    0.1  # share of the width of an interval by which a metric may differ: near-ties fall otherwise on other CPUs
)
_LIKELIHOOD = 0.005  # share of the bits of a byte
_ERRORS = 4.0  # standard errors of a bound: its noise may be drawn in another order


@dataclass(frozen=True)
class Check:
    """One figure of a card, found again."""

    what: str
    recorded: float
    found: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """The two differ by at most the tolerance."""
        return abs(self.found - self.recorded) <= self.tolerance


@dataclass(frozen=True)
class Verified:
    """What was checked of one checkpoint."""

    name: str
    damaged: list[str]  # files that are missing, damaged or not in the list of checksums
    checks: list[Check]

    @property
    def ok(self) -> bool:
        """Everything is as its card says."""
        return not self.damaged and all(one.ok for one in self.checks)


def verify(name: str, log: Callable[[str], None]) -> Verified:
    """Check the files of a checkpoint, and measure it again.

    Raises:
        UserError: no such recipe or record, or the rows can't be read.
    """
    made = entry(name)
    record = read_record(made.folder)
    files = {path.relative_to(zoo_folder()).as_posix() for path in made.folder.iterdir()}
    states = check(zoo_folder(), name)
    damaged = sorted(
        f"{file} is {states.get(file, 'unlisted')}" for file in files | states.keys() if states.get(file) != "intact"
    )
    if damaged:
        return Verified(name, damaged, [])
    found = results(made, log)
    checks = [
        check
        for task, recorded in record.measured.items()
        for check in _checks(f"{task}: " if task else "", recorded, Measured.of(found.tasks[task]))
    ]
    return Verified(name, [], checks)


def _checks(prefix: str, recorded: Measured, found: Measured) -> Iterator[Check]:
    old, new = recorded.likelihood, found.likelihood
    tolerance = max(1e-4, _LIKELIHOOD * old.bits_per_byte, _ERRORS * old.bits_per_byte_error)
    yield Check(f"{prefix}bits/byte", old.bits_per_byte, new.bits_per_byte, tolerance)
    for name, metric in recorded.metrics.items():
        tolerance = max(0.05, _INTERVAL * (metric.high - metric.low))
        yield Check(f"{prefix}{metric.label}", metric.value, found.metrics[name].value, tolerance)
    yield Check(f"{prefix}passes a text", recorded.nfe, found.nfe, 0.02 * recorded.nfe)
