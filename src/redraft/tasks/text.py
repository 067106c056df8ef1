"""Plain text: continue it. There is no right answer, so the likelihood is reported beside what was written."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.diversity import Diversity
from redraft.metrics.likeness import Likeness
from redraft.tasks import Shape


@dataclass(frozen=True)
class Text:
    summary = "plain text: likeness of continuations to human text, diversity, repetition, entropy"
    margin = 1.0  # points of likeness

    def metrics(self) -> list[Metric]:
        return [Likeness(), Diversity("distinct", 2), Diversity("repetition", 4), Diversity("entropy")]

    def claim(self, shape: Shape) -> tuple[float, str]:
        return (0.0, "") if shape.paired else (1.0, "rows have a text and no input")
