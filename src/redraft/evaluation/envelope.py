"""How much a result depends on settings that are often left unsaid, and which claims hold whatever they are."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

CELLS = 0.95  # share of matched settings in which a method must be better


@dataclass(frozen=True)
class Envelope:
    """A method's scores over its settings."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Envelope:
        """Raises:
        ValueError: no score.
        """
        if not len(scores):
            raise ValueError("an envelope needs a score")
        return cls(float(np.min(scores)), float(np.median(scores)), float(np.max(scores)))


@dataclass(frozen=True)
class Claim:
    """Is one method better than another one, whatever the settings?"""

    matched: int  # pairs of settings and seeds that were compared
    share: float  # of them in which it is better
    holds: bool


def better_everywhere(
    ours: Mapping[Hashable, Sequence[float]], theirs: Mapping[Hashable, Sequence[float]]
) -> Claim | None:
    """The claim that a method is better than another one, from scores by setting and seed; None: no setting is matched.

    It holds if the method is better in 95 % of the matched cells, and its median is above the other's seed band: the
    highest, over seeds, of the other's medians over settings. Two copies of one method fail it.

    Args:
        ours, theirs: scores of each seed, by setting; only settings of both are compared. Higher is better.
    """
    both = [setting for setting in ours if setting in theirs]
    if not both:
        return None
    cells = [a > b for setting in both for a, b in zip(ours[setting], theirs[setting], strict=False)]
    seeds = min(len(theirs[setting]) for setting in both)
    band = max(float(np.median([theirs[setting][seed] for setting in both])) for seed in range(seeds))
    median = float(np.median([score for setting in both for score in ours[setting]]))
    share = float(np.mean(cells))
    return Claim(len(cells), share, share >= CELLS and median > band)


def explained(scores: Sequence[float], factors: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """One-way R^2 of each factor: the share of the variance of scores that lies between its levels.

    Args:
        scores: of each setting. factors: levels of each setting, by name of the factor. A factor with one level, or a
            level for each setting, explains nothing that could be told apart from chance, and is left out.
    """
    values = np.asarray(scores, dtype=np.float64)
    total = float(((values - values.mean()) ** 2).sum()) if len(values) else 0.0
    found: dict[str, float] = {}
    for name in dict.fromkeys(key for one in factors for key in one):
        levels: dict[Any, list[int]] = {}
        for row, one in enumerate(factors):
            levels.setdefault(repr(one.get(name)), []).append(row)
        if total > 0 and 1 < len(levels) < len(values):
            groups = (values[rows] for rows in levels.values())
            found[name] = sum(len(group) * float(group.mean() - values.mean()) ** 2 for group in groups) / total
    return found
