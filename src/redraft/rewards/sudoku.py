"""Sudoku: the cells of a puzzle are filled as in its solution, or so that the rules hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from redraft.options import setting
from redraft.rewards.base import Answer, Reward
from redraft.rewards.shared.answers import answer as answer_of

_EMPTY = "0._"


@dataclass(frozen=True)
class Sudoku(Reward):
    """The share of the empty cells that the answer fills as the solution does, as in d1 (arXiv:2504.12216).

    Puzzle, solution and answer are the cells row by row; everything but digits (and ``.`` and ``_`` for empty cells of
    the puzzle) is ignored. An answer that is too short has empty cells at its end. Cells that the puzzle gives don't
    count.

    Fields:
        puzzle, solution: columns. Without a column of the solution, the reference answer is the solution.
        solved: reward only puzzles whose empty cells are all right.
        judge: ``solution`` compares with it. ``rules`` rewards any full grid that keeps the given cells and has every
            digit once in each row, column and box: a puzzle may have several solutions.
    """

    puzzle: str = setting("puzzle", "Column of the puzzle.")
    solution: str = setting("solution", "Column of the solution.")
    solved: bool = setting(False, "1 if all empty cells are right, else 0.")
    judge: Literal["solution", "rules"] = setting("solution", "Compare with the solution, or check the rules.")

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs a puzzle and a solution of the same size."""
        puzzle, solution = self._cells(reference, row)
        if self.judge == "rules":
            side = math.isqrt(len(puzzle))
            square = puzzle and side**2 == len(puzzle) and math.isqrt(side) ** 2 == side and side <= len("123456789")
            return "" if square else f"its column '{self.puzzle}' is not a grid of 4 x 4 or 9 x 9 cells"
        if not puzzle or len(puzzle) != len(solution) or not any(cell in _EMPTY for cell in puzzle):
            return (
                f"its columns '{self.puzzle}' and '{self.solution}' (or its reference answer) are not a puzzle with "
                "empty cells and its solution"
            )
        return ""

    def _cells(self, reference: str, row: Mapping[str, Any]) -> tuple[str, str]:
        puzzle, solution = (str(row.get(name, "")) for name in (self.puzzle, self.solution))
        return cells(puzzle, _EMPTY), cells(solution or reference)

    def score(self, answer: Answer) -> float:
        """Between 0 and 1."""
        puzzle, solution = self._cells(answer.reference, answer.row)
        found = cells(answer_of(answer.text)).ljust(len(puzzle), "0")
        if self.judge == "rules":
            return float(_kept(puzzle, found) and follows_rules(found))
        right = [a == b for a, b, cell in zip(found, solution, puzzle, strict=False) if cell in _EMPTY]
        return float(all(right)) if self.solved else sum(right) / len(right)


def _kept(puzzle: str, grid: str) -> bool:
    return len(grid) == len(puzzle) and all(
        given in _EMPTY or given == cell for given, cell in zip(puzzle, grid, strict=True)
    )


def follows_rules(grid: str) -> bool:
    """Does a grid of n^2 x n^2 digits, row by row, have each of 1 ... n^2 once in every row, column and box?"""
    side = math.isqrt(len(grid))
    box = math.isqrt(side)
    if not side or side**2 != len(grid) or box**2 != side:
        return False
    places = [(row, column) for row in range(side) for column in range(side)]
    wanted = {str(digit) for digit in range(1, side + 1)}
    for group in (lambda r, c: r, lambda r, c: c, lambda r, c: r // box * box + c // box):
        found: dict[int, set[str]] = {}
        for row, column in places:
            found.setdefault(group(row, column), set()).add(grid[row * side + column])
        if any(one != wanted for one in found.values()):
            return False
    return True


def cells(text: str, more: str = "") -> str:
    """The digits of a text, and the characters ``more``."""
    return "".join(character for character in text if character in "0123456789" or character in more)
