"""Coloring: the nodes of a graph have colours, and neighbours have different ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redraft.options import setting
from redraft.rewards.base import Answer, Reward
from redraft.rewards.shared.answers import answer as answer_of

_NUMBER = re.compile(r"\d{1,6}", re.ASCII)


@dataclass(frozen=True)
class Coloring(Reward):
    """1 if the answer is a colour from 1 to ``colors`` for every node, and no edge joins two nodes of one colour.

    The answer is the colours of the nodes in order; what stands between the numbers is ignored. Any proper colouring
    is right, not only the one that the row holds.

    Fields:
        nodes, edges, colors: columns: how many nodes and colours, and the edges as pairs of nodes from 0.
    """

    nodes: str = setting("nodes", "Column of the number of nodes.")
    edges: str = setting("edges", "Column of the edges, pairs of nodes.")
    colors: str = setting("colors", "Column of the number of colours.")

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs a graph."""
        nodes, edges, colors = (row.get(name) for name in (self.nodes, self.edges, self.colors))
        if not isinstance(nodes, int) or not isinstance(colors, int) or not isinstance(edges, list):
            return f"its columns '{self.nodes}', '{self.colors}' and '{self.edges}' are not two numbers and a list"
        inside = all(
            isinstance(edge, list | tuple)
            and len(edge) == 2
            and all(isinstance(node, int) and 0 <= node < nodes for node in edge)
            for edge in edges
        )
        return "" if inside else f"its column '{self.edges}' has something else than pairs of nodes"

    def score(self, answer: Answer) -> float:
        """1 or 0."""
        found = [int(number) for number in _NUMBER.findall(answer_of(answer.text))]
        if len(found) != answer.row[self.nodes] or not all(1 <= one <= answer.row[self.colors] for one in found):
            return 0.0
        return float(all(found[a] != found[b] for a, b in answer.row[self.edges]))
