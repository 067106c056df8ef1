"""Sudoku: generated puzzles of 4 x 4 or 9 x 9 cells, ``sudoku:4x4``."""

from __future__ import annotations

from functools import cache
from itertools import permutations
from typing import Any

from redraft.data.generated import Dice, GeneratedSource

_CLUES = {2: (4, 12), 3: (30, 60)}  # fewest and most given cells, by the side of a box


class Sudoku(GeneratedSource):
    """``sudoku:4x4`` or ``sudoku:9x9``. Columns: ``question`` (the grid, a line for each row, 0 for an empty cell),
    ``answer``, and ``clues``, the number of given cells.

    A puzzle of 4 x 4 cells has exactly one solution. One of 9 x 9 may have several: score answers by the rules
    (``rewards.sudoku``). No test row has the solution of a training row.
    """

    name, kinds, example = "sudoku", "4x4|9x9", "sudoku:4x4"

    def solution(self, dice: Dice, kind: str) -> str:
        if kind == "4x4":
            return all_grids()[dice.below(len(all_grids()))]
        grid = _permuted(dice, 3)
        return "\n".join("".join(map(str, line)) for line in grid)

    def values(self, dice: Dice, kind: str, solution: str) -> dict[str, Any]:
        few, most = _CLUES[2 if kind == "4x4" else 3]
        cells = [at for at, cell in enumerate(solution) if cell != "\n"]
        clues = few + dice.below(most - few + 1)
        order = [cells[at] for at in dice.shuffled(len(cells))]
        if kind == "4x4":
            clues = _least(solution, order, clues)
        empty = set(order[clues:])
        question = "".join("0" if at in empty else cell for at, cell in enumerate(solution))
        return {"question": question, "answer": solution, "clues": clues}


def _least(solution: str, order: list[int], clues: int) -> int:
    """How many cells of a 4 x 4 grid must be given, in this order, for one solution: at least ``clues``."""
    others = [grid for grid in all_grids() if grid != solution]
    while any(all(grid[at] == solution[at] for at in order[:clues]) for grid in others):
        clues += 1
    return clues


@cache
def all_grids() -> tuple[str, ...]:
    """The 288 grids of 4 x 4 cells, a line for each row."""
    lines = ["".join(line) for line in permutations("1234")]
    bands = [(a, b) for a in lines for b in lines if all(len({*a[at : at + 2], *b[at : at + 2]}) == 4 for at in (0, 2))]
    grids = ((*top, *bottom) for top in bands for bottom in bands)
    return tuple("\n".join(grid) for grid in grids if all(len(set(column)) == 4 for column in zip(*grid, strict=True)))


def _permuted(dice: Dice, box: int) -> list[list[int]]:
    """A grid that follows the rules, with its lines permuted within bands, its bands, its digits, and its axes."""
    side = box * box
    rows, columns = (_lines(dice, box) for _ in range(2))
    digits = [digit + 1 for digit in dice.shuffled(side)]
    grid = [[digits[(row % box * box + row // box + column) % side] for column in columns] for row in rows]
    return [list(line) for line in zip(*grid, strict=True)] if dice.below(2) else grid


def _lines(dice: Dice, box: int) -> list[int]:
    """The lines of a grid in another order, which keeps the lines of a band together."""
    return [band * box + line for band in dice.shuffled(box) for line in dice.shuffled(box)]
