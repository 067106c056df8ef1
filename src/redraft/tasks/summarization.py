"""Summarization: the target is a much shorter account of the input."""

from __future__ import annotations

from dataclasses import dataclass

from redraft.metrics import Metric
from redraft.metrics.rouge import Rouge
from redraft.tasks import Shape


@dataclass(frozen=True)
class Summarization:
    summary = "summarization: ROUGE-L, ROUGE-1, ROUGE-2"
    margin = 1.0  # ROUGE-L points

    def metrics(self) -> list[Metric]:
        return [Rouge("rougeL"), Rouge("rouge1"), Rouge("rouge2")]

    def claim(self, shape: Shape) -> tuple[float, str]:
        if not shape.paired or shape.prompt_words < 40 or shape.target_words < 6:
            return 0.0, ""
        share = shape.target_words / shape.prompt_words
        return (0.8, f"targets are {share:.0%} as long as their inputs") if share < 0.4 else (0.0, "")
