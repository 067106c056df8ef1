"""Shared by the tests of the command line: tiny data, and the result of a command."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = ["the", "cat", "sat", "on", "a", "mat", "dog", "ran", "to", "house", "where", "bird", "sang", "all", "day"]


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 5 + number % 3))


PAIRS = [{"question": f"{sentence(n)} {n}", "answer": sentence(n + 7)} for n in range(120)]


@dataclass
class Answer:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, "exactly one line on stdout"
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Redraft = Callable[..., Answer]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """Environment variables for a command in a separate process."""
    source = str(Path(__file__).parents[2] / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **more}
