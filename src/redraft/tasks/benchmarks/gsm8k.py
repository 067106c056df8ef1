"""Gsm8k: word problems of school mathematics, with a chain of thought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.final_answer import FinalAnswer
from redraft.metrics.last_number import LastNumber
from redraft.tasks.benchmarks.base import Benchmark


class Gsm8k(Benchmark):
    """Four examples with a chain of thought (Wei et al. 2022, arXiv:2201.11903). The last number of the text counts;
    beside it, the number that the text marks by ``####`` (Cobbe et al. 2021, arXiv:2110.14168)."""

    summary = "school mathematics, 4 shots with chains of thought: last number, and the marked answer"
    citation = "Cobbe et al. 2021, arXiv:2110.14168"
    sources = {"": "reasoning/gsm8k"}
    template = "Question: {}\nAnswer:"
    shots = 4
    stop = ("\nQuestion:", "\n\n")
    max_new_tokens = 256

    def metrics(self, part: str) -> list[Metric]:
        return [LastNumber(), FinalAnswer()]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        solution = f"{text_of(values, 'rationale').strip()}\n#### {text_of(values, 'answer')}"
        return Example(text_of(values, "question"), solution, "")
