"""Sudoku puzzles: one solution each, splits without common puzzles, a larger set begins with a smaller one."""

from __future__ import annotations

import numpy as np
import pytest

from redraft.data.columns import Columns
from redraft.data.examples import load
from redraft.data.sources.sudoku import grids
from redraft.errors import UserError

COLUMNS = Columns(input="question", target="answer")


def cells(text: str) -> np.ndarray:
    return np.array(text.split(), dtype=int)


def test_there_are_as_many_grids_as_are_known() -> None:
    found = grids()
    assert found.shape == (288, 16) and len(np.unique(found, axis=0)) == 288
    boxes = found.reshape(-1, 2, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4, 4)
    for lines in (found.reshape(-1, 4, 4), found.reshape(-1, 4, 4).transpose(0, 2, 1), boxes):
        assert (np.sort(lines, -1) == np.arange(1, 5)).all()


def test_every_puzzle_has_its_one_solution() -> None:
    every = grids()
    for example in load("sudoku:4x4:60", COLUMNS).train:
        puzzle, solution = cells(example.prompt or ""), cells(example.target)
        given = puzzle > 0
        fits = (every[:, given] == puzzle[given]).all(1)
        assert fits.sum() == 1 and (every[fits][0] == solution).all()


def test_splits_share_no_puzzle_and_rows_are_always_the_same() -> None:
    small, large = (load(f"sudoku:4x4:{rows}", COLUMNS) for rows in (50, 120))
    prompts = {name: {example.prompt for example in part} for name, part in large.items()}
    assert not prompts["train"] & (prompts["validation"] | prompts["test"])
    assert not prompts["validation"] & prompts["test"] and len(prompts["test"]) == 1000
    assert [e.prompt for e in small.train] == [e.prompt for e in large.train][:50]


@pytest.mark.parametrize("name", ["sudoku:9x9", "sudoku:4x4:", "sudoku:4x4:99999999"])
def test_what_can_not_be_made_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="sudoku"):
        load(name, COLUMNS)
