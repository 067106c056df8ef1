"""Perplexity of generated text against its entropy, over temperatures.

For a generator q and a judge p, log perplexity = H(q) + KL(q | p). Either number alone can be driven anywhere by the
temperature: repetitive text has a low perplexity, and only the pair says something. Methods are compared at equal
entropy, such as that of human text. The entropy that is reported is that of the words within a text, a proxy for H(q),
so the identity holds for it only roughly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FrontierPoint:
    """Generated texts at one temperature, or human texts."""

    temperature: float | None  # None: human texts
    log_perplexity: float  # nats a token under the judge
    entropy: float  # bits a word, of a text's words, mean over texts


@dataclass(frozen=True)
class Frontier:
    """The curve over temperatures, with the point of the data."""

    judge: str
    points: tuple[FrontierPoint, ...]
    human: FrontierPoint
    at_human_entropy: float | None  # log-perplexity where the curve has the entropy of the data; None: nowhere

    @classmethod
    def of(cls, judge: str, points: Sequence[FrontierPoint], human: FrontierPoint) -> Frontier:
        """The curve through some points."""
        return cls(judge, tuple(points), human, at_entropy(points, human.entropy))


def at_entropy(points: Sequence[FrontierPoint], entropy: float) -> float | None:
    """The log-perplexity at an entropy, between the two neighbouring points; None outside of all points."""
    found = sorted((point.entropy, point.log_perplexity) for point in points if math.isfinite(point.log_perplexity))
    for (x0, y0), (x1, y1) in zip(found, found[1:], strict=False):
        if x0 <= entropy <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (entropy - x0) / (x1 - x0)
    return found[0][1] if len(found) == 1 and found[0][0] == entropy else None
