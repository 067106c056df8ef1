"""Coloring: generated graphs whose nodes are to be coloured, ``coloring:8``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redraft.data.generated import Dice, GeneratedSource

_COLORS = 3
_EDGES_PER_NODE = 1.6  # below the 2.3 at which random graphs cease to have a colouring of three colours


class Coloring(GeneratedSource):
    """``coloring:N``, graphs of N nodes, from 8 to 30, for which three colours suffice. Columns: ``question`` (the
    edges, ``0-3 1-4 ...``), ``answer`` (the colours of the nodes in order), ``nodes``, ``edges`` and ``colors``.

    A graph has several colourings: score answers by the rule (``rewards.coloring``). The answer is the first one in
    alphabetical order, and no test row has the answer of a training row.
    """

    name, kinds, example = "coloring", "[89]|[12][0-9]|30", "coloring:8"

    def draw(self, dice: Dice, kind: str) -> dict[str, Any]:
        nodes = int(kind)
        planted = [dice.below(_COLORS) for _ in range(nodes)]  # so that there is a colouring
        possible = [[a, b] for a in range(nodes) for b in range(a + 1, nodes) if planted[a] != planted[b]]
        count = min(len(possible), round(_EDGES_PER_NODE * nodes))
        edges = [possible[at] for at in sorted(dice.shuffled(len(possible), count))]
        return {
            "question": " ".join(f"{a}-{b}" for a, b in edges),
            "answer": " ".join(map(str, first_coloring(nodes, edges))),
            "nodes": nodes,
            "edges": edges,
            "colors": _COLORS,
        }

    def key(self, values: dict[str, Any]) -> str:
        return str(values["answer"])


def first_coloring(nodes: int, edges: Sequence[Sequence[int]]) -> list[int]:
    """The first proper colouring with the colours 1, 2 and 3 in alphabetical order, by search with backtracking.

    Raises:
        ValueError: there is none.
    """
    before: list[list[int]] = [[] for _ in range(nodes)]  # neighbours with a smaller number
    for a, b in edges:
        before[max(a, b)].append(min(a, b))
    found: list[int] = []
    color = 1
    while len(found) < nodes:
        taken = {found[node] for node in before[len(found)]}
        while color <= _COLORS and color in taken:
            color += 1
        if color <= _COLORS:
            found.append(color)
            color = 1
            continue
        if not found:
            raise ValueError("the graph needs more colours")
        color = found.pop() + 1
    return found
