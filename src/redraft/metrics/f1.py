"""Token F1 after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv:1606.05250)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean
from redraft.metrics.exact_match import normalise
from redraft.metrics.shared import scripts


@dataclass(frozen=True)
class F1(Mean):
    """Mean over rows of the best reference's F1 between bags of normalised words. Two empty answers have F1 = 1.

    Characters count as words in scripts that are written without spaces, as in MLQA (Lewis et al. 2020,
    arXiv:1910.07475).
    """

    name = "f1"
    label = "F1"

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        return max(_f1(scripts.split(normalise(hypothesis)), scripts.split(normalise(r))) for r in references)


def _f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2.0 * common / (len(ours) + len(theirs))
