"""PythonLines: lines of the standard library that are missing, with the lines around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from redraft.data.columns import text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.chrf import Chrf
from redraft.metrics.text_match import TextMatch
from redraft.tasks.benchmarks.base import Answering, Benchmark


class PythonLines(Benchmark):
    """One line inside a function of Python's standard library, as installed (``data.sources.stdlib``). There are no
    tests to run, so that the text must equal the line; chrF shows how near the others are. Scores of different Python
    versions can't be compared."""

    summary = "missing lines of the standard library: exact match and chrF"
    citation = "Python's standard library, PSF licence"
    sources = {"": "stdlib:lines"}
    separator = ""
    stop = ("\n",)
    answering: ClassVar[Answering] = "infill"
    max_new_tokens = 48

    def metrics(self, part: str) -> list[Metric]:
        return [TextMatch(), Chrf()]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        return Example(text_of(values, "prompt"), text_of(values, "line"), "", suffix=text_of(values, "suffix"))
