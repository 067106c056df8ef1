"""Multiplication: generated problems with their long-hand solution, ``multiplication:4x4``."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from redraft.data.rows import Row, Source
from redraft.errors import UserError

_NAME = re.compile(r"multiplication:(\d+)x(\d+)(?::(\d+))?")
_TRAINING, _HELD_OUT = 25_000, 1000  # default number of training rows; rows of validation and of test
_CHUNK = 4096  # number of problems drawn at a time
_SHARES = 64  # of 64 equal shares of all problems, one is for validation, one for test, and the rest for training


class Multiplication(Source):
    """``multiplication:NxM`` multiplies N-digit by M-digit numbers. ``multiplication:NxM:ROWS`` sets the number of
    training rows (default 25,000); validation and test have 1,000 rows each.

    The columns are ``question``, ``rationale`` and ``answer``, in the form of Deng et al. 2023 (arXiv:2311.01460),
    which Diffusion-of-Thought (arXiv:2402.07754) also uses: least significant digit first, spaces between all digits,
    one partial product in each step and the running sum in brackets,

        6 5 1 7 * 1 2 0 6    6 5 1 7 0 + 0 2 1 3 4 1 ( 6 7 4 7 4 1 ) + ...

    The rows are deterministic: the same name gives the same rows on every machine, and a larger set begins with the
    rows of a smaller one. No problem occurs twice. A hash of the two numbers decides the split, so that no problem is
    in two splits.
    """

    holds_splits = True

    def matches(self, path: str) -> bool:
        return path.startswith("multiplication:")

    def splits(self, path: str, data_root: str | None = None) -> dict[str, str]:
        return {} if "#" in path else {name: f"{path}#{name}" for name in ("train", "validation", "test")}

    def read(self, path: str) -> Iterator[Row]:
        name, _, part = path.partition("#")
        found = _NAME.fullmatch(name)
        if found is None:
            raise UserError(
                f"Source '{name}' is not of the form multiplication:NxM[:ROWS].", "For example multiplication:4x4:1000."
            )
        left, right = int(found[1]), int(found[2])
        rows = int(found[3] or _TRAINING) if part in ("train", "") else _HELD_OUT
        if not (1 <= left <= 9 and 1 <= right <= 9):
            raise UserError(f"Source '{name}' has numbers of {left} and {right} digits.", "Use 1 to 9 digits each.")
        if 2 * _SHARES * max(_HELD_OUT, rows // _SHARES) > 81 * 10 ** (left + right - 2):
            raise UserError(
                f"Source '{name}': there are too few such problems for {rows} rows.", "Use more digits or fewer rows."
            )
        for number, (a, b) in enumerate(_problems(left, right, part, rows), 1):
            yield Row(_solution(a, b, left, right), path, number)


def _problems(left: int, right: int, part: str, rows: int) -> Iterator[tuple[int, int]]:
    """The first ``rows`` different problems of one split, in a fixed order."""
    random = np.random.default_rng([left, right])
    seen: set[tuple[int, int]] = set()
    while True:
        a = random.integers(10 ** (left - 1), 10**left, _CHUNK)
        b = random.integers(10 ** (right - 1), 10**right, _CHUNK)
        share = _shuffled(a.astype(np.uint64) * np.uint64(10**right) + b.astype(np.uint64)) % np.uint64(_SHARES)
        mine = {"validation": share == 0, "test": share == 1}.get(part, share > 1)
        for pair in zip(a[mine].tolist(), b[mine].tolist(), strict=True):
            if pair not in seen:
                seen.add(pair)
                yield pair
                if len(seen) == rows:
                    return


def _shuffled(number: np.ndarray) -> np.ndarray:
    """A fixed hash of 64-bit numbers (the finaliser of SplitMix64)."""
    number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return number ^ (number >> np.uint64(31))


def _solution(a: int, b: int, left: int, right: int) -> dict[str, str]:
    """The columns of one problem: the question, the partial products with their running sums, the answer."""
    steps, total = [], 0
    for digit in range(right):
        partial = a * (b // 10**digit % 10) * 10**digit
        total += partial
        width = left + 1 + digit
        step = _digits(partial, width)
        if 0 < digit < right - 1:
            step += f" ( {_digits(total, width)} )"
        steps.append(step)
    return {
        "question": f"{_digits(a, left)} * {_digits(b, right)}",
        "rationale": " + ".join(steps),
        "answer": _digits(a * b, left + right),
    }


def _digits(number: int, width: int) -> str:
    """The digits of a number, least significant first, padded with zeros to ``width``."""
    return " ".join(reversed(f"{number:0{width}d}"))
