"""Summarization: the target is much shorter than the input."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.rouge import Rouge
from redraft.tasks import DataProfile


@dataclass(frozen=True)
class Summarization:
    """Summaries, scored by ROUGE."""

    summary = "summarization: ROUGE-L, ROUGE-1, ROUGE-2"
    margin = 1.0  # ROUGE-L points

    def metrics(self) -> list[Metric]:
        return [Rouge("rougeL"), Rouge("rouge1"), Rouge("rouge2")]

    def match(self, data: DataProfile) -> tuple[float, str]:
        if not data.paired or data.prompt_words < 40 or data.target_words < 6:
            return 0.0, ""
        share = data.target_words / data.prompt_words
        return (0.8, f"targets are {share:.0%} as long as their inputs") if share < 0.4 else (0.0, "")
