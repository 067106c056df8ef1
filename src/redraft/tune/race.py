"""A race of decoding configurations over growing subsets of the same rows.

Scoring every configuration on every row spends most of the work on configurations that a few rows show to be bad. Here
all start with the first piece of the rows. Each time the number of rows doubles, configurations that are unlikely to be
chosen are eliminated, and neighbours of the leaders join. Two configurations are compared on the rows that both have
seen, by a bootstrap that draws the same rows for both, so that the difficulty of the rows, which is most of the noise,
cancels (F-race, Birattari et al. 2002; successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943, on rows instead
of epochs).

Costs are counted, not timed: forward passes and operations. Counts are the same on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from redraft.evaluation.decoding import DecodingConfig
from redraft.metrics import Array

LIKELY = 0.95  # probability of being useless from which a configuration is eliminated
RESAMPLES = 1000
JOINING = 12  # configurations that join after each round
STAYING = 24  # configurations that stay after each round, at most
LEADERS = 8  # ... once the time is over
ROWS = 32  # of a piece


class Candidates(Protocol):
    """Where configurations come from: ``tune.space.Space``."""

    def start(self) -> list[DecodingConfig]: ...
    def near(self, config: DecodingConfig) -> Iterator[DecodingConfig]: ...
    def fits(self, config: DecodingConfig) -> bool: ...


@dataclass(frozen=True)
class Piece:
    """Results of a configuration on one piece of the rows."""

    stats: Array  # [rows, k] sufficient statistics of the metric
    passes: float  # summed over rows
    operations: float
    tokens: int


@dataclass
class Racer:
    """A configuration in the race."""

    config: DecodingConfig
    pieces: list[Piece] = field(default_factory=list)
    eliminated: str = ""  # the reason; empty: still in the race

    def cost(self, pieces: int) -> tuple[float, float]:
        """Forward passes and operations per row, of the first pieces."""
        seen = self.pieces[:pieces]
        rows = sum(len(piece.stats) for piece in seen)
        return sum(piece.passes for piece in seen) / rows, sum(piece.operations for piece in seen) / rows

    def stats(self, pieces: int) -> Array:
        """Statistics of the rows of the first pieces, [rows, k]."""
        return np.concatenate([piece.stats for piece in self.pieces[:pieces]])


@dataclass
class Race:
    """
    Args:
        combine: sums of statistics [..., k] -> values [...], where higher is better.
        within: how far behind the best a configuration may be, in the same unit.
        measure: generates and scores a piece: configuration, number of the piece -> piece.
        pieces: number of pieces of all rows.
        until: time.monotonic() after which nothing new is tried. The rows that all have seen then decide (``pieces``).
        log: receives a line of progress after each round.
    """

    combine: Callable[[Array], Array]
    within: float
    measure: Callable[[DecodingConfig, int], Piece]
    pieces: int
    until: float = float("inf")
    log: Callable[[str], None] = lambda text: None
    racers: dict[DecodingConfig, Racer] = field(default_factory=dict)
    _draws: dict[tuple[DecodingConfig, int], Array] = field(default_factory=dict)

    def run(self, space: Candidates, current: DecodingConfig) -> list[Racer]:
        """All configurations that were tried. Those still in the race have seen ``pieces`` pieces.

        Args:
            current: the model's own configuration, which is never eliminated.
        """
        new, rounds = list(dict.fromkeys([current, *space.start()])), _rounds(self.pieces)
        for number, target in enumerate(rounds):
            self.racers |= {config: Racer(config) for config in new}
            for racer in self.live():
                late = time.monotonic() > self.until
                if late and not racer.pieces and racer.config != current:
                    del self.racers[racer.config]  # there was no time to try it
                elif not late or not racer.pieces:
                    self._advance(racer, target, current)
            self._thin(target, current)
            self.log(f"{min(target, self.pieces)} of {self.pieces} pieces: {len(self.live())} configurations are left")
            if time.monotonic() > self.until:
                self.pieces = min(len(racer.pieces) for racer in self.live())  # there is no time for the other rows
                break
            new = [] if number == len(rounds) - 1 else self._joining(space, target)
        return list(self.racers.values())

    def live(self) -> list[Racer]:
        """The racers that were not eliminated."""
        return [racer for racer in self.racers.values() if not racer.eliminated]

    def quality(self, racer: Racer, pieces: int) -> float:
        """The metric on the rows of the first pieces."""
        return float(self.combine(racer.stats(pieces).sum(0)))

    def probability_better(self, a: Racer, b: Racer, by: float = 0.0) -> float:
        """Probability that ``a`` is better than ``b`` by more than ``by``, on the rows that both have seen."""
        shared = min(len(a.pieces), len(b.pieces))
        return float(np.mean(self._drawn(a, shared) - self._drawn(b, shared) > by))

    def _advance(self, racer: Racer, target: int, current: DecodingConfig) -> None:
        """Measure piece by piece, until it is useless."""
        while len(racer.pieces) < target:
            racer.pieces.append(self.measure(racer.config, len(racer.pieces)))
            if racer.config != current and (reason := self._useless(racer)):
                racer.eliminated = reason
                return

    def _useless(self, racer: Racer) -> str:
        """Why a configuration can't be the choice; empty if it may be.

        It is further behind another one than allowed; or another one that costs no more is better; or another one that
        costs less is at most half the tolerance behind. (The best that the choice is compared with may therefore be
        missed by half the tolerance, not more.)
        """
        for other in self.live():
            if other is racer or not other.pieces:
                continue
            shared = min(len(racer.pieces), len(other.pieces))
            if self.probability_better(other, racer, self.within) >= LIKELY:
                return f"behind {other.config.id}"
            theirs, mine = other.cost(shared), racer.cost(shared)
            cheaper = all(a <= b for a, b in zip(theirs, mine, strict=True))
            if not cheaper:
                continue
            if self.probability_better(other, racer) >= LIKELY:
                return f"no cheaper than {other.config.id}, and worse"
            if theirs != mine and self.probability_better(racer, other, self.within / 2) <= 1 - LIKELY:
                return f"costs more than {other.config.id}, and is hardly better"
            twin = np.array_equal(self._drawn(other, shared), self._drawn(racer, shared))
            if twin and len(other.pieces) > len(racer.pieces):
                return f"same scores as {other.config.id}"
        return ""

    def _thin(self, target: int, current: DecodingConfig) -> None:
        """Eliminate what is useless; of the rest keep a limited number, Pareto front by front."""
        for racer in self.live():
            if racer.config != current and (reason := self._useless(racer)):
                racer.eliminated = reason
        left, rank = self.live(), 0
        places = LEADERS if time.monotonic() > self.until else STAYING
        while left:
            front = [racer for racer in left if not any(self._beats(other, racer, target) for other in left)]
            for racer in front:
                if rank >= places and racer.config != current:
                    racer.eliminated = "many others were better"
                rank += 1
            left = [racer for racer in left if racer not in front]

    def _beats(self, a: Racer, b: Racer, pieces: int) -> bool:
        """Is a at least as good and as cheap as b, and better in something? By point estimates."""
        ours = (-self.quality(a, pieces), *a.cost(pieces))
        theirs = (-self.quality(b, pieces), *b.cost(pieces))
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    def _joining(self, space: Candidates, target: int) -> list[DecodingConfig]:
        """Neighbours of the best configuration and of the cheapest that are good enough, in turn."""
        live = self.live()
        values = {racer.config: self.quality(racer, target) for racer in live}
        best = max(values.values())
        good = sorted((r for r in live if values[r.config] >= best - self.within), key=lambda r: r.cost(target))
        leaders = list(dict.fromkeys([r.config for r in good[:3]] + [max(values, key=lambda one: values[one])]))
        queues = [
            [one for one in space.near(leader) if one not in self.racers and space.fits(one)] for leader in leaders
        ]
        found: dict[DecodingConfig, None] = {}
        while any(queues) and len(found) < JOINING:
            for queue in queues:
                if queue:
                    found[queue.pop(0)] = None
        return list(found)[:JOINING]

    def _drawn(self, racer: Racer, pieces: int) -> Array:
        """[RESAMPLES] values on resampled rows; the same rows for every configuration."""
        key = racer.config, pieces
        if key not in self._draws:
            stats = racer.stats(pieces)
            rng = np.random.default_rng(pieces)
            counts = rng.multinomial(len(stats), np.full(len(stats), 1 / len(stats)), RESAMPLES)
            self._draws[key] = self.combine(counts.astype(np.float64) @ stats)
        return self._draws[key]


def _rounds(pieces: int) -> list[int]:
    """1, 2, 4 ... and all pieces. The last comes twice: in it, only neighbours of the last leaders run."""
    found = [1]
    while found[-1] * 2 < pieces:
        found.append(found[-1] * 2)
    return [*(n for n in found if n < pieces), pieces, pieces]


def fronts(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points (cost, quality) are on the Pareto front: no other is as cheap and better, or as good and cheaper."""
    return [not any((a <= x and b > y) or (a < x and b >= y) for a, b in points) for x, y in points]
