"""Coloring: colours of the nodes of a graph, scored by the rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.rewarded import Rewarded
from redraft.rewards.coloring import Coloring as Reward
from redraft.tasks.benchmarks.base import Benchmark, pair


class Coloring(Benchmark):
    """A text is right if it gives every node one of three colours and no edge joins equal ones
    (``data.sources.coloring``)."""

    summary = "colouring of graphs of 8 and 16 nodes: proper colourings"
    citation = "generated"
    sources = {"8": "coloring:8:100", "16": "coloring:16:100"}
    template = "Edges: {}\nColors:"
    shots = 3
    stop = ("\n",)
    max_new_tokens = 64

    def metrics(self, part: str) -> list[Metric]:
        return [Rewarded(Reward(), "valid", "proper colourings %")]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return pair(values, "question", "answer")
