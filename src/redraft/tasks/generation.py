"""Any other input and target: rewriting, data to text, dialogue, question generation."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.metrics.diversity import Diversity
from redraft.metrics.rouge import Rouge
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Generation:
    """Text from an input, scored by overlap with the target."""

    summary = "input to text: chrF, ROUGE-L, BLEU, and the diversity of the texts"
    margin = 1.0  # chrF points

    def metrics(self) -> list[Metric]:
        return [Chrf(), Rouge("rougeL"), Bleu(), Diversity("distinct", 2)]

    def match(self, data: DataProfile) -> tuple[float, str]:
        return (0.3, "input and target match no more specific task") if data.paired else (0.0, "")
