"""Sudoku: grids of 4 x 4 and 9 x 9 cells, scored by the rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.rewarded import Rewarded
from redraft.rewards.sudoku import Sudoku as Reward
from redraft.tasks.benchmarks.base import Benchmark, pair


class Sudoku(Benchmark):
    """A text is right if it is a full grid that keeps the given cells and follows the rules, whether or not it is the
    solution of the row. Training rows have other solutions than test rows (``data.sources.sudoku``)."""

    summary = "sudoku of 4 x 4 and 9 x 9 cells: grids that follow the rules"
    citation = "generated; the form of Dream, arXiv:2508.15487"
    sources = {"4x4": "sudoku:4x4:100", "9x9": "sudoku:9x9:100"}
    template = "Puzzle:\n{}\nSolution:"
    separator = "\n"
    shots = 3
    stop = ("\n\n", "\nPuzzle")
    max_new_tokens = 192

    def metrics(self, part: str) -> list[Metric]:
        judged = Reward(puzzle="question", judge="rules")
        return [
            Rewarded(judged, "valid", "valid grids %"),
            Rewarded(Reward(puzzle="question"), "cells", "cells as in the solution %", decides=False),
        ]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return replace(pair(values, "question", "answer"), values={**values, "solution": values["answer"]})
