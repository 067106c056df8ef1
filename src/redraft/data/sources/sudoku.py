"""Sudoku: puzzles of 4 x 4 cells with one solution, made on the fly. ``sudoku:4x4`` or ``sudoku:4x4:ROWS``."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

import numpy as np

from redraft.data.rows import Row, Source
from redraft.errors import UserError

_TRAINING, _HELD_OUT = 20_000, 1000  # default number of training rows; rows of validation and of test
_CLUES = (5, 12)  # given cells of a puzzle: fewest and most
_NAME = re.compile(r"sudoku:4x4(?::(\d+))?")
_SHARES = 16  # of 16 equal shares of all puzzles, one is for validation, one for test, and the rest for training
_MOST = 1_000_000  # rows


class Sudoku(Source):
    """Columns ``question`` (cells row by row, 0 for an empty one) and ``answer``; cells are separated by spaces.

    Every puzzle has exactly one solution among the 288 grids. The rows are deterministic, and a larger set begins with
    the rows of a smaller one. A hash of the puzzle decides the split: no puzzle is in two splits, though two puzzles
    may share their solution.
    """

    holds_splits = True

    def matches(self, path: str) -> bool:
        return path.startswith("sudoku:")

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        return {} if "#" in path else {name: f"{path}#{name}" for name in ("train", "validation", "test")}

    def read(self, path: str) -> Iterator[Row]:
        name, _, part = path.partition("#")
        found = _NAME.fullmatch(name)
        if found is None:
            raise UserError(f"Source '{name}' is not of the form sudoku:4x4[:ROWS].", "For example sudoku:4x4:1000.")
        rows = int(found[1] or _TRAINING) if part in ("train", "") else _HELD_OUT
        if rows > _MOST:
            raise UserError(f"Source '{name}' has too many rows.", f"Use at most {_MOST:,}.")
        for number, (puzzle, solution) in enumerate(_puzzles(part, rows), 1):
            yield Row({"question": _cells(puzzle), "answer": _cells(solution)}, path, number)


def grids() -> np.ndarray:
    """All valid grids, [288, 16] of the digits 1 to 4."""
    rows = list(itertools.permutations(range(1, 5)))
    halves = [
        (upper, lower)
        for upper, lower in itertools.product(rows, repeat=2)
        if all(len({*upper[at : at + 2], *lower[at : at + 2]}) == 4 for at in (0, 2))
    ]
    found = [
        [cell for row in (*top, *bottom) for cell in row]
        for top, bottom in itertools.product(halves, repeat=2)
        if all(len(set(column)) == 4 for column in zip(*top, *bottom, strict=True))
    ]
    return np.array(found)


def _puzzles(part: str, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first ``rows`` different puzzles of one split with their solutions, in a fixed order."""
    every, random, seen = grids(), np.random.default_rng(4), set[bytes]()
    wanted = {"validation": (0,), "test": (1,)}.get(part, tuple(range(2, _SHARES)))
    while len(seen) < rows:
        solution = every[random.integers(len(every))]
        given = random.permutation(16)[: random.integers(_CLUES[0], _CLUES[1] + 1)]
        puzzle = np.zeros(16, dtype=solution.dtype)
        puzzle[given] = solution[given]
        key = puzzle.tobytes()
        if _share(puzzle) not in wanted or key in seen:
            continue
        if (every[:, given] == solution[given]).all(1).sum() == 1:
            seen.add(key)
            yield puzzle, solution


def _share(puzzle: np.ndarray) -> int:
    """The share of all puzzles that a puzzle belongs to: a fixed hash of its cells (FNV-1a)."""
    number = 0xCBF29CE484222325
    for cell in puzzle.tolist():
        number = ((number ^ int(cell)) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return (number >> 32) % _SHARES


def _cells(grid: np.ndarray) -> str:
    return " ".join(map(str, grid.tolist()))
