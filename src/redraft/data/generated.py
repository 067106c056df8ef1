"""Generated sources: deterministic rows, split so that train and test share neither question nor solution."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from redraft.data.rows import Row, Source
from redraft.errors import UserError

TRAINING, HELD_OUT = 25_000, 1000  # default number of training rows; rows of validation and of test
_MOST = 500_000
_SHARES = 8  # of 8 equal shares of all solutions, one is for validation, one for test, and the rest for training
_PATIENCE = 20_000  # draws without a new row after which there are no more
_CHUNK = 1 << 14  # random numbers drawn at a time


class Dice:
    """A stream of random integers, the same on every machine; drawn in large parts, so that one is cheap."""

    def __init__(self, *seed: int) -> None:
        self._random = np.random.default_rng(list(seed))
        self._drawn: list[int] = []

    def below(self, limit: int) -> int:
        """A number from 0 to ``limit`` - 1, below 2^20."""
        if not self._drawn:
            self._drawn = self._random.integers(0, 1 << 53, _CHUNK).tolist()
        return self._drawn.pop() % limit

    def shuffled(self, count: int, first: int | None = None) -> list[int]:
        """The numbers below ``count`` in random order, or only the ``first`` of them (Fisher-Yates)."""
        found, most = list(range(count)), count if first is None else first
        for at in range(min(most, count - 1)):
            other = at + self.below(count - at)
            found[at], found[other] = found[other], found[at]
        return found[:most]


class GeneratedSource(Source):
    """``NAME:KIND`` or ``NAME:KIND:ROWS``, where ROWS is the number of training rows (default 25,000).

    One name holds all splits; validation and test have 1,000 rows each. The same name gives the same rows on every
    machine, and a larger set begins with the rows of a smaller one. A hash of ``key`` decides the split of a row.

    Attributes:
        name, kinds, example: how it is written.
    """

    holds_splits = True
    name: ClassVar[str]
    kinds: ClassVar[str]  # a regular expression
    example: ClassVar[str]

    def matches(self, path: str) -> bool:
        return path.startswith(f"{self.name}:")

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        return {} if "#" in path else {name: f"{path}#{name}" for name in ("train", "validation", "test")}

    @abstractmethod
    def draw(self, dice: Dice, kind: str) -> dict[str, Any]:
        """The columns of a row drawn at random; among them ``question`` and ``answer``."""

    @abstractmethod
    def key(self, values: dict[str, Any]) -> str:
        """What rows of two splits must not share. It must follow from the question alone, and from the answer alone."""

    def read(self, path: str) -> Iterator[Row]:
        name, _, part = path.partition("#")
        found = re.fullmatch(rf"{self.name}:({self.kinds})(?::(\d+))?", name)
        if found is None:
            raise UserError(f"There is no source '{name}'.", f"Write {self.example}, or {self.example}:ROWS.")
        rows = int(found[2] or TRAINING) if part in ("train", "") else HELD_OUT
        if rows > _MOST:
            raise UserError(f"Source '{name}' has {rows:,} rows.", f"Use at most {_MOST:,}.")
        yield from (Row(values, path, number) for number, values in enumerate(self._draws(found[1], part, rows), 1))

    def _draws(self, kind: str, part: str, rows: int) -> Iterator[dict[str, Any]]:
        """The first different rows of a split.

        Raises:
            UserError: there are not so many.
        """
        dice, seen, waited = Dice(*f"{self.name}:{kind}".encode()), set[str](), 0
        while len(seen) < rows:
            values = self.draw(dice, kind)
            share = _share(self.key(values))
            mine = {"validation": share == 0, "test": share == 1}.get(part, share > 1)
            if not mine or values["question"] in seen:
                waited += 1
                if waited > _PATIENCE:
                    what = f"'{self.name}:{kind}' has only {len(seen):,} different {part or 'train'} rows."
                    raise UserError(what, "Ask for fewer rows, or for larger problems.")
                continue
            waited = 0
            seen.add(values["question"])
            yield values


def _share(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") % _SHARES
