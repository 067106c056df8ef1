"""Mbpp: small programs from a sentence, checked by running tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from redraft.data.columns import BadRow, text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.rewards.unit_tests import program
from redraft.tasks.benchmarks.base import Benchmark, cut, texts_of
from redraft.tasks.benchmarks.shared.programs import code_metrics

_SHOWN = (2, 3, 4)  # task_id of the examples in the prompt (Austin et al. 2021)


class Mbpp(Benchmark):
    """Three examples, the tasks 2, 3 and 4, each with its tests (Austin et al. 2021, arXiv:2108.07732). The wording of
    the prompt is our own; its parts are those of the paper."""

    summary = "programs from a sentence, 3 shots: programs that pass the tests, and exact match"
    citation = "Austin et al. 2021, arXiv:2108.07732"
    sources = {"": "code/mbpp"}
    template = "Task: {}\nProgram:\n```python"
    separator = "\n"
    shots = 3
    stop = ("\n```", "\nTask:")
    max_new_tokens = 256

    def metrics(self, part: str) -> list[Metric]:
        return code_metrics()

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        """As ``Benchmark.example``.

        Raises:
            BadRow: a column is missing or of the wrong kind.
        """
        tests = texts_of(values, "test_list")
        code = text_of(values, "code").replace("\r\n", "\n").strip()
        prompt = f"{text_of(values, 'text').strip()}\nTests:\n{chr(10).join(tests)}"
        setup = values.get("test_setup_code") or ""
        if not isinstance(setup, str):
            raise BadRow("column 'test_setup_code' is not a text")
        found = Example(prompt, f"{code}\n```", "", references=(code,))
        return replace(found, values={**values, "tests": "\n".join([setup, *tests])})

    def chosen_shots(self, training: Sequence[Example], count: int, example: Example) -> list[Example]:
        known = {one.values["task_id"]: one for one in training if one.values and "task_id" in one.values}
        shown = [known[number] for number in _SHOWN if number in known]
        return [*shown, *(one for one in training if one not in shown)][:count]

    def extract(self, text: str, values: Mapping[str, Any]) -> str:
        return program(text).strip() if text.lstrip().startswith("```") else cut(text, self.stop).strip()
