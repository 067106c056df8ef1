"""Programs: what of a text is the program, the tests that it must pass, and the metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redraft.data.columns import text_of
from redraft.metrics import Metric
from redraft.metrics.rewarded import Rewarded
from redraft.metrics.text_match import TextMatch
from redraft.rewards.unit_tests import UnitTests, program
from redraft.tasks.benchmarks.base import cut

# What begins a new statement at the margin, after the body of a function (Chen et al. 2021, arXiv:2107.03374).
ENDS = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n@", "\nimport ", "\nfrom ", "\nassert ")


def code_metrics() -> list[Metric]:
    """The programs that pass their tests, run in the sandbox; and those that equal the reference."""
    return [Rewarded(UnitTests(), "passed", "programs that pass %"), TextMatch()]


def tests_of(values: Mapping[str, Any]) -> str:
    """The tests of a row of HumanEval, which call its function.

    Raises:
        BadRow: a column is missing.
    """
    return f"{text_of(values, 'test')}\n\ncheck({text_of(values, 'entry_point')})\n"


def body(text: str, prompt: str, stop: Sequence[str]) -> str:
    """The program that a prompt and the text after it are; of an answer with fences, the last block between them."""
    if "```" in text:
        found = program(text)
        return found if prompt.strip() and f"def {_name(prompt)}" in found else prompt + found
    return prompt + cut(text, stop).rstrip() + "\n"


def _name(prompt: str) -> str:
    """The name of the last function that a prompt begins."""
    return prompt.rpartition("def ")[2].partition("(")[0].strip()
