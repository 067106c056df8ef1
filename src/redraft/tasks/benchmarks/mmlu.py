"""Mmlu: questions of 57 subjects, from school to profession."""

from __future__ import annotations

from collections.abc import Sequence

from redraft.data.examples import Example
from redraft.tasks.benchmarks.shared.choice import Choice


class Mmlu(Choice):
    """The question lists its options, and their letters are scored, after up to five examples of the same subject
    (Hendrycks et al. 2021, arXiv:2009.03300)."""

    summary = "questions of 57 subjects, 5 shots: accuracy by likelihood of the letter"
    citation = "Hendrycks et al. 2021, arXiv:2009.03300"
    sources = {"": "qa/mmlu"}
    lettered = True
    template = "{}\nAnswer:"
    shots = 5

    def chosen_shots(self, training: Sequence[Example], count: int, example: Example) -> list[Example]:
        subject = (example.values or {}).get("subject")
        return [one for one in training if (one.values or {}).get("subject") == subject][:count]
