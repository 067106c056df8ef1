"""Lambada: the last word of a passage, which its whole context determines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.tasks.benchmarks.base import Benchmark, pair


class Lambada(Benchmark):
    """The first generated word must be the last word of the passage (Paperno et al. 2016, arXiv:1606.06031).

    The likelihood that is reported beside it is that of the word.
    """

    summary = "the last word of a passage: accuracy"
    citation = "Paperno et al. 2016, arXiv:1606.06031"
    sources = {"": "cloze/lambada"}
    max_new_tokens = 8

    def metrics(self, part: str) -> list[Metric]:
        return [Accuracy()]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return pair(values, "context", "target")

    def extract(self, text: str, values: Mapping[str, Any]) -> str:
        return (text.split() or [""])[0]
