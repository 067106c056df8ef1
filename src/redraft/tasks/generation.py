"""Any other pair: rewriting, data to text, dialogue, question generation."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.bleu import Bleu
from redraft.metrics.chrf import Chrf
from redraft.metrics.diversity import Diversity
from redraft.metrics.rouge import Rouge
from redraft.tasks import Shape


@dataclass(frozen=True)
class Generation:
    summary = "input to text: chrF, ROUGE-L, BLEU, and how varied the texts are"
    margin = 1.0  # chrF points

    def metrics(self) -> list[Metric]:
        return [Chrf(), Rouge("rougeL"), Bleu(), Diversity("distinct", 2)]

    def claim(self, shape: Shape) -> tuple[float, str]:
        return (0.3, "input and target fit no narrower kind of job") if shape.paired else (0.0, "")
