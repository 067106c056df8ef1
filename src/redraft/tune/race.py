"""A race of settings over growing subsets of the same rows.

Scoring every setting on every row spends most of its work on settings that a few rows show to be bad. Here all begin
on the first piece of the rows. At each doubling of the rows those are taken out that by now are known to be of no use,
and neighbours of the leaders join. Two settings are compared on the rows that both have written, by a bootstrap that
draws the same rows for both: the difficulty of the rows, which is most of the noise, cancels (F-race, Birattari et al.
2002; successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943, on rows in place of epochs).

Costs are counted, not timed: passes of a text, and operations. Counts are the same on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from redraft.metrics import Array
from redraft.tune.space import Space, Trial

SURE = 0.95  # how likely a setting must be of no use to be taken out
RESAMPLES = 1000
NEW = 12  # settings that join after each round
WIDE = 24  # settings that go on after each round, at most
ROWS = 32  # of a piece


@dataclass(frozen=True)
class Piece:
    """What a setting made of one piece of the rows."""

    stats: Array  # [rows, k] sufficient statistics of the metric
    passes: float  # summed over rows
    operations: float
    tokens: int


@dataclass
class Racer:
    """A setting in the race."""

    trial: Trial
    pieces: list[Piece] = field(default_factory=list)
    lost: str = ""  # why it was taken out

    def cost(self, pieces: int) -> tuple[float, float]:
        """Passes and operations a row, of the first pieces."""
        seen = self.pieces[:pieces]
        rows = sum(len(piece.stats) for piece in seen)
        return sum(piece.passes for piece in seen) / rows, sum(piece.operations for piece in seen) / rows

    def stats(self, pieces: int) -> Array:
        return np.concatenate([piece.stats for piece in self.pieces[:pieces]])


@dataclass
class Race:
    """
    Args:
        combine: sums of statistics [..., k] -> values [...], the higher the better.
        within: how far behind the best a setting may be, in the same unit.
        measure: writes and scores a piece: setting, number of the piece -> piece.
        pieces: of all rows.
        until: time.monotonic() after which nothing joins any more and only the leaders go on.
    """

    combine: Callable[[Array], Array]
    within: float
    measure: Callable[[Trial, int], Piece]
    pieces: int
    until: float = float("inf")
    tell: Callable[[str], None] = lambda text: None
    racers: dict[Trial, Racer] = field(default_factory=dict)
    _draws: dict[tuple[Trial, int], Array] = field(default_factory=dict)

    def run(self, space: Space, own: Trial) -> list[Racer]:
        """All settings that were tried, those still in the race having seen every row. ``own`` is never taken out."""
        new, rounds = list(dict.fromkeys([own, *space.start()])), _rounds(self.pieces)
        for number, target in enumerate(rounds):
            self.racers |= {trial: Racer(trial) for trial in new}
            for racer in self.live():
                self._advance(racer, target, own)
            self._thin(target, own)
            self.tell(f"{min(target, self.pieces)} of {self.pieces} pieces: {len(self.live())} settings are left")
            last = number == len(rounds) - 1 or time.monotonic() > self.until
            new = [] if last else self._joining(space, target)
        return list(self.racers.values())

    def live(self) -> list[Racer]:
        return [racer for racer in self.racers.values() if not racer.lost]

    def quality(self, racer: Racer, pieces: int) -> float:
        return float(self.combine(racer.stats(pieces).sum(0)))

    def ahead(self, a: Racer, b: Racer, by: float = 0.0) -> float:
        """How likely ``a`` is better than ``b`` by more than ``by``, on the rows that both have seen."""
        shared = min(len(a.pieces), len(b.pieces))
        return float(np.mean(self._drawn(a, shared) - self._drawn(b, shared) > by))

    def _advance(self, racer: Racer, target: int, own: Trial) -> None:
        """Piece by piece, until it is known to be of no use."""
        while len(racer.pieces) < target:
            racer.pieces.append(self.measure(racer.trial, len(racer.pieces)))
            if racer.trial != own and (lost := self._useless(racer)):
                racer.lost = lost
                return

    def _useless(self, racer: Racer) -> str:
        """Why a setting can't be what is looked for; empty if it may be.

        It is further behind some other than it may be; or another that costs no more is better; or another that costs
        less is at most half the tolerance behind. (So the best that the choice is held against may be missed by half
        the tolerance, not more.)
        """
        for other in self.live():
            if other is racer or not other.pieces:
                continue
            shared = min(len(racer.pieces), len(other.pieces))
            if self.ahead(other, racer, self.within) >= SURE:
                return f"behind {other.trial.id}"
            theirs, mine = other.cost(shared), racer.cost(shared)
            cheaper = all(a <= b for a, b in zip(theirs, mine, strict=True))
            if not cheaper:
                continue
            if self.ahead(other, racer) >= SURE:
                return f"no cheaper than {other.trial.id}, and worse"
            if theirs != mine and self.ahead(racer, other, self.within / 2) <= 1 - SURE:
                return f"costs more than {other.trial.id}, and hardly better"
            twin = np.array_equal(self._drawn(other, shared), self._drawn(racer, shared))
            if twin and len(other.pieces) > len(racer.pieces):
                return f"writes what {other.trial.id} writes"
        return ""

    def _thin(self, target: int, own: Trial) -> None:
        """Take out what is of no use; of the rest keep so many, front by front."""
        for racer in self.live():
            if racer.trial != own and (lost := self._useless(racer)):
                racer.lost = lost
        left, rank = self.live(), 0
        leaders = 8 if time.monotonic() > self.until else WIDE
        while left:
            front = [racer for racer in left if not any(self._beats(other, racer, target) for other in left)]
            for racer in front:
                if rank >= leaders and racer.trial != own:
                    racer.lost = "many others were ahead"
                rank += 1
            left = [racer for racer in left if racer not in front]

    def _beats(self, a: Racer, b: Racer, pieces: int) -> bool:
        """Is a at least as good and as cheap as b, and better in something? By point estimates."""
        ours = (-self.quality(a, pieces), *a.cost(pieces))
        theirs = (-self.quality(b, pieces), *b.cost(pieces))
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    def _joining(self, space: Space, target: int) -> list[Trial]:
        """Neighbours of the best setting and of the cheapest that are good enough, in turn."""
        live = self.live()
        values = {racer.trial: self.quality(racer, target) for racer in live}
        best = max(values.values())
        good = sorted((r for r in live if values[r.trial] >= best - self.within), key=lambda r: r.cost(target))
        leaders = list(dict.fromkeys([r.trial for r in good[:3]] + [max(values, key=lambda t: values[t])]))
        queues = [[t for t in space.near(leader) if t not in self.racers and space.fits(t)] for leader in leaders]
        found: dict[Trial, None] = {}
        while any(queues) and len(found) < NEW:
            for queue in queues:
                if queue:
                    found[queue.pop(0)] = None
        return list(found)[:NEW]

    def _drawn(self, racer: Racer, pieces: int) -> Array:
        """[RESAMPLES] values on resampled rows; the same rows for every setting."""
        key = racer.trial, pieces
        if key not in self._draws:
            stats = racer.stats(pieces)
            rng = np.random.default_rng(pieces)
            counts = rng.multinomial(len(stats), np.full(len(stats), 1 / len(stats)), RESAMPLES)
            self._draws[key] = self.combine(counts.astype(np.float64) @ stats)
        return self._draws[key]


def _rounds(pieces: int) -> list[int]:
    """1, 2, 4 ... and all, which comes twice: neighbours of the last leaders run it alone."""
    found = [1]
    while found[-1] * 2 < pieces:
        found.append(found[-1] * 2)
    return [*(n for n in found if n < pieces), pieces, pieces]


def fronts(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of (cost, quality) no other point beats: none is as cheap and better, or as good and cheaper."""
    return [not any((a <= x and b > y) or (a < x and b >= y) for a, b in points) for x, y in points]
