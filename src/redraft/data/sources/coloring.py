"""Coloring: generated graphs whose nodes are to be coloured, ``coloring:8``."""

from __future__ import annotations

from typing import Any

from redraft.data.generated import Dice, GeneratedSource

_COLORS = 3
_EDGES_PER_NODE = 1.6  # below the 2.3 at which random graphs cease to have a colouring of three colours


class Coloring(GeneratedSource):
    """``coloring:N``, graphs of N nodes, from 8 to 30, for which three colours suffice. Columns: ``question`` (the
    edges, ``0-3 1-4 ...``), ``answer`` (the colours of the nodes in order), ``nodes``, ``edges`` and ``colors``.

    A graph has several colourings: score answers by the rule (``rewards.coloring``). Edges are drawn for a colouring
    whose colours are numbered in order of their first node, and no test row has the colouring of a training row.
    """

    name, kinds, example = "coloring", "[89]|[12][0-9]|30", "coloring:8"

    def solution(self, dice: Dice, kind: str) -> str:
        known: dict[int, int] = {}
        drawn = [dice.below(_COLORS) for _ in range(int(kind))]
        return " ".join(str(known.setdefault(color, len(known) + 1)) for color in drawn)

    def values(self, dice: Dice, kind: str, solution: str) -> dict[str, Any]:
        colors = solution.split()
        nodes = len(colors)
        possible = [[a, b] for a in range(nodes) for b in range(a + 1, nodes) if colors[a] != colors[b]]
        count = min(len(possible), round(_EDGES_PER_NODE * nodes))
        edges = [possible[at] for at in sorted(dice.shuffled(len(possible), count))]
        question = " ".join(f"{a}-{b}" for a, b in edges)
        return {"question": question, "answer": solution, "nodes": nodes, "edges": edges, "colors": _COLORS}
