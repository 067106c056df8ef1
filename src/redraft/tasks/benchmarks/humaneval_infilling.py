"""HumanevalInfilling: lines and parts of functions that are missing, checked by running tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from redraft.data.columns import text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.tasks.benchmarks.base import Answering, Benchmark
from redraft.tasks.benchmarks.shared.programs import code_metrics, tests_of


class HumanevalInfilling(Benchmark):
    """The text before and after a gap is given (Bavarian et al. 2022, arXiv:2207.14255).

    A model that reads to both sides fills a gap of as many tokens as the reference has, the oracle length. A causal
    model reads only what stands before the gap, and continues it up to as many lines as are missing.
    """

    summary = "missing parts of functions: programs that pass the tests, and exact match"
    citation = "Bavarian et al. 2022, arXiv:2207.14255"
    sources = {
        "single-line": "code/humaneval-infilling-single-line",
        "multi-line": "code/humaneval-infilling-multi-line",
        "random-span": "code/humaneval-infilling-random-span",
        "random-span-light": "code/humaneval-infilling-random-span-light",
    }
    separator = ""
    answering: ClassVar[Answering] = "infill"
    max_new_tokens = 192

    def metrics(self, part: str) -> list[Metric]:
        return code_metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        before, missing, after = (text_of(values, name) for name in ("prompt", "canonical_solution", "suffix"))
        found = Example(before, missing, "", references=(before + missing + after,), suffix=after)
        return replace(found, values={**values, "tests": tests_of(values)})

    def extract(self, text: str, values: Mapping[str, Any]) -> str:
        before, missing, after = (str(values[name]) for name in ("prompt", "canonical_solution", "suffix"))
        lines = text.splitlines(keepends=True)[: len(missing.splitlines())]
        filled = "".join(lines)
        if missing.endswith("\n") and not filled.endswith("\n"):
            filled += "\n"
        return before + filled + after
