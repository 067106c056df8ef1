"""Boolq: questions that yes or no answers, without their passages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import BadRow
from redraft.data.examples import Example
from redraft.tasks.benchmarks.shared.choice import Choice


class Boolq(Choice):
    """Closed-book: only the question is given (Clark et al. 2019, arXiv:1905.10044)."""

    summary = "yes or no, closed-book: accuracy by likelihood"
    citation = "Clark et al. 2019, arXiv:1905.10044"
    sources = {"": "qa/boolq-closed"}

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        """As ``Benchmark.example``.

        Raises:
            BadRow: the choices are others.
        """
        if values.get("choices") != ["false", "true"]:
            raise BadRow("column 'choices' is not ['false', 'true']")
        return super().example({**values, "choices": ["no", "yes"]}, part)
