"""NqOpen: questions that people asked a search engine, without a text that holds the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import text_of
from redraft.data.examples import Example
from redraft.tasks.benchmarks.base import texts_of
from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.qa import Qa


class NqOpen(Pairs):
    """Any of several answers is right (Lee et al. 2019, arXiv:1906.00300; Kwiatkowski et al. 2019)."""

    kind = Qa
    summary = "questions of a search engine, closed-book: token F1 and exact match"
    citation = "Lee et al. 2019, arXiv:1906.00300"
    sources = {"": "qa/nq-open"}
    template = "Question: {}\nAnswer:"
    max_new_tokens = 32

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        answers = texts_of(values, "answers")
        return Example(text_of(values, "question"), answers[0], "", references=answers)
