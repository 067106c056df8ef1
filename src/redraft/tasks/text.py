"""Plain text: the model continues it. There is no right answer, so texts are compared with human text as a corpus."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.diversity import Diversity
from redraft.metrics.ngram_similarity import NgramSimilarity
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Text:
    """Continuations of plain text, compared with human text."""

    summary = "plain text: n-gram similarity of continuations to human text, diversity, repetition, entropy"
    margin = 1.0  # points of n-gram similarity

    def metrics(self) -> list[Metric]:
        return [NgramSimilarity(), Diversity("distinct", 2), Diversity("repetition", 4), Diversity("entropy")]

    def match(self, data: DataProfile) -> tuple[float, str]:
        return (0.0, "") if data.paired else (1.0, "rows have a text and no input")
