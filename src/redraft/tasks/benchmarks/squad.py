"""Squad: questions about a passage that holds the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redraft.data.columns import BadRow, text_of
from redraft.data.examples import Example
from redraft.tasks.benchmarks.shared.pairs import Pairs
from redraft.tasks.qa import Qa


class Squad(Pairs):
    """Rows ``{context, question, answers: [{text, answer_start}]}``. Part ``shifts`` has passages of Wikipedia, Reddit
    and shops (Miller et al. 2020, arXiv:2004.14444), part ``xquad`` is a part of SQuAD v1.1 (Artetxe et al. 2020,
    arXiv:1910.11856)."""

    kind = Qa
    summary = "questions about a passage: token F1 and exact match"
    citation = "Rajpurkar et al. 2016, arXiv:1606.05250; arXiv:2004.14444; arXiv:1910.11856"
    sources = {"shifts": "qa/squadshifts", "xquad": "qa/xquad-en"}
    template = "{}\nAnswer:"
    max_new_tokens = 32

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        """As ``Benchmark.example``.

        Raises:
            BadRow: there is no answer with a text.
        """
        answers = values.get("answers")
        if not isinstance(answers, list) or not answers or not all(isinstance(one, dict) for one in answers):
            raise BadRow("column 'answers' is not a list of objects with a text")
        texts = tuple(text_of(answer, "text") for answer in answers)
        prompt = f"{text_of(values, 'context').strip()}\nQuestion: {text_of(values, 'question').strip()}"
        return Example(prompt, texts[0], "", references=texts)
