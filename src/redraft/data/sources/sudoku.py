"""Sudoku: generated puzzles of 4 x 4 or 9 x 9 cells, ``sudoku:4x4``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from redraft.data.generated import Dice, GeneratedSource

_CLUES = {"4x4": (4, 12), "9x9": (30, 60)}  # fewest and most given cells


class Sudoku(GeneratedSource):
    """``sudoku:4x4`` or ``sudoku:9x9``. Columns: ``question`` (the grid, a line for each row, 0 for an empty cell),
    ``answer``, and ``clues``, the number of given cells.

    A puzzle of 4 x 4 cells has one solution; one of 9 x 9 cells may have several: score answers by the rules
    (``rewards.sudoku``). No test row has the solution of a training row.
    """

    name, kinds, example = "sudoku", "4x4|9x9", "sudoku:4x4"

    def draw(self, dice: Dice, kind: str) -> dict[str, Any]:
        grid = _all_grids()[dice.below(len(_all_grids()))] if kind == "4x4" else _permuted(dice, 3)
        few, most = _CLUES[kind]
        order, clues = dice.shuffled(len(grid)), few + dice.below(most - few + 1)
        if kind == "4x4":
            clues = _enough(grid, order, clues)
        given = set(order[:clues])
        question = [digit if at in given else 0 for at, digit in enumerate(grid)]
        return {"question": _text(question), "answer": _text(grid), "clues": clues}

    def key(self, values: dict[str, Any]) -> str:
        return str(values["answer"])


def _text(grid: Sequence[int]) -> str:
    side = round(len(grid) ** 0.5)
    return "\n".join("".join(map(str, grid[row : row + side])) for row in range(0, len(grid), side))


def _permuted(dice: Dice, box: int) -> list[int]:
    """A grid that follows the rules, with its lines permuted within bands, its bands, its digits, and its axes."""
    side = box * box
    rows, columns = (_lines(dice, box) for _ in range(2))
    digits = [digit + 1 for digit in dice.shuffled(side)]
    grid = [[digits[(row % box * box + row // box + column) % side] for column in columns] for row in rows]
    turned = [list(line) for line in zip(*grid, strict=True)] if dice.below(2) else grid
    return [digit for line in turned for digit in line]


def _lines(dice: Dice, box: int) -> list[int]:
    """The lines of a grid in another order, which keeps the lines of a band together."""
    return [band * box + line for band in dice.shuffled(box) for line in dice.shuffled(box)]


@cache
def _all_grids() -> tuple[tuple[int, ...], ...]:
    """All grids of 4 x 4 cells."""

    def filled(cells: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if len(cells) == 16:
            yield cells
            return
        row, column = divmod(len(cells), 4)
        taken = {
            digit
            for at, digit in enumerate(cells)
            if at // 4 == row or at % 4 == column or (at // 8, at % 4 // 2) == (row // 2, column // 2)
        }
        for digit in {1, 2, 3, 4} - taken:
            yield from filled((*cells, digit))

    return tuple(sorted(filled(())))


@cache
def _having() -> dict[tuple[int, int], int]:
    """For each cell and digit the grids of 4 x 4 cells that have it there, as the bits of a number."""
    found: dict[tuple[int, int], int] = {}
    for number, grid in enumerate(_all_grids()):
        for place in enumerate(grid):
            found[place] = found.get(place, 0) | 1 << number
    return found


def _enough(grid: Sequence[int], order: Sequence[int], clues: int) -> int:
    """The least number of clues, from ``clues`` on, with which the first cells of ``order`` leave one solution."""
    left = -1
    for number, at in enumerate(order):
        left &= _having()[at, grid[at]]
        if number + 1 >= clues and not left & (left - 1):  # one bit is left
            return number + 1
    return len(order)
