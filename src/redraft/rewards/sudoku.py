"""Sudoku: the cells of a puzzle are filled as in its solution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """

    puzzle: str = setting("puzzle", "Column of the puzzle.")
    solution: str = setting("solution", "Column of the solution.")
    solved: bool = setting(False, "1 if all empty cells are right, else 0.")

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs a puzzle and a solution of the same size."""
        puzzle, solution = self._cells(reference, row)
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
        right = [a == b for a, b, cell in zip(found, solution, puzzle, strict=False) if cell in _EMPTY]
        return float(all(right)) if self.solved else sum(right) / len(right)


def cells(text: str, more: str = "") -> str:
    """The digits of a text, and the characters ``more``."""
    return "".join(character for character in text if character in "0123456789" or character in more)
