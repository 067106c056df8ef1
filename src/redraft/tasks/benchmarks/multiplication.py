"""Multiplication: products of numbers of many digits, with partial products as a chain of thought."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import joined, text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.tasks.benchmarks.base import Benchmark
from redraft.tasks.reasoning import Reasoning


class Multiplication(Benchmark):
    """Generated problems (``data.sources.multiplication``); the solution is the partial products, then the product
    (Deng et al. 2023, arXiv:2311.01460)."""

    summary = "multiplication with partial products: correct results, and solutions correct throughout"
    citation = "Deng et al. 2023, arXiv:2311.01460"
    sources = {"4x4": "multiplication:4x4:100", "5x5": "multiplication:5x5:100"}
    template = "{} ="
    separator = "\n"
    shots = 2
    stop = ("\n\n",)
    max_new_tokens = 256

    def metrics(self, part: str) -> list[Metric]:
        return Reasoning().metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return Example(text_of(values, "question"), joined(values, "rationale+answer"), "")
