"""Questions of multiple choice: the option of the highest likelihood is the answer."""

from __future__ import annotations

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any, ClassVar

from redraft.data.columns import BadRow, text_of
from redraft.data.examples import Example
from redraft.metrics import Metric
from redraft.metrics.accuracy import Accuracy
from redraft.tasks.benchmarks.base import Answering, Benchmark, texts_of


class Choice(Benchmark):
    """Rows ``{question, choices, answer}`` with ``answer`` an index into ``choices``.

    Attributes:
        lettered: the question lists the options as A, B, C ..., and the answer is a letter (Hendrycks et al. 2021,
            arXiv:2009.03300). Otherwise the options themselves are scored (Brown et al. 2020, arXiv:2005.14165).
    """

    answering: ClassVar[Answering] = "choose"
    template = "Question: {}\nAnswer:"
    stop: ClassVar[tuple[str, ...]] = ("\n",)
    max_new_tokens = 32
    lettered: ClassVar[bool] = False

    def metrics(self, part: str) -> list[Metric]:
        return [Accuracy()]

    def example(self, values: Mapping[str, Any], part: str) -> Example:
        """As ``Benchmark.example``.

        Raises:
            BadRow: the answer is not the index of one of several choices.
        """
        question, options, answer = text_of(values, "question"), texts_of(values, "choices"), values.get("answer")
        if not isinstance(answer, int) or not 0 <= answer < len(options) or len(set(options)) < 2:
            raise BadRow("column 'answer' is not the index of one of several choices")
        question, options = self.asked(question, options)
        if self.lettered:
            letters = tuple(ascii_uppercase[: len(options)])
            listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
            return Example(f"{question}\n{listed}", letters[answer], "", options=letters)
        return Example(question, options[answer], "", options=options)

    def asked(self, question: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """Question and options as they are scored; unchanged by default."""
        return question, options
