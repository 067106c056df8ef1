"""UnitTests: the program that an answer holds passes the tests of its row."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from redraft import sandbox
from redraft.options import check, setting
from redraft.rewards.base import Answer, Reward

_FENCE = re.compile(r"^```[^\n]*\n(.*?)(?:^```|\Z)", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class UnitTests(Reward):
    """1 if the Python program of the answer and then the row's tests run without an exception, else 0.

    The program is the last block between ```` ``` ```` fences, or else the whole text. It runs isolated and limited
    (``redraft.sandbox``), with the standard library only, and apart from the tests, which call its functions with plain
    data: it can't read them, and can't claim that they passed.

    Fields:
        tests: the column of the tests: Python statements such as ``assert f(1) == 2``, as a text or a list of texts.
        seconds, memory: limits of ``sandbox.Limits``.
    """

    tests: str = setting("tests", "Column of the tests.")
    seconds: float = setting(4.0, "Time of the program and its tests.", above=0, most=3600, unit="seconds")
    memory: int = setting(512, "Memory of the program.", least=64, unit="MiB")

    def __post_init__(self) -> None:
        check(self)

    def ready(self) -> None:
        """Check that programs can be isolated on this machine."""
        sandbox.require()

    def problem(self, reference: str, row: Mapping[str, Any]) -> str:
        """It needs tests."""
        return "" if self._tests(row).strip() else f"its column '{self.tests}' has no tests"

    def _tests(self, row: Mapping[str, Any]) -> str:
        found = row.get(self.tests)
        return "\n".join(map(str, found)) if isinstance(found, list) else str(found or "")

    def score(self, answer: Answer) -> float:
        """1 or 0."""
        limits = sandbox.Limits(seconds=self.seconds, memory=self.memory)
        return float(sandbox.run(program(answer.text), self._tests(answer.row), limits=limits).passed)

    def scores(self, answers: Sequence[Answer]) -> list[float]:
        """The rewards of several texts, as many at once as there are processors."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self.score, answers))


def program(text: str) -> str:
    """The last fenced block of a text, or else the text."""
    found = _FENCE.findall(text)
    return found[-1] if found else text
