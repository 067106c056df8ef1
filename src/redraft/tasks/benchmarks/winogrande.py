"""Winogrande: which of two names a sentence means."""

from __future__ import annotations

from redraft.data.columns import BadRow
from redraft.tasks.benchmarks.shared.choice import Choice


class Winogrande(Choice):
    """The sentence after its gap is scored together with each name, given the sentence before it (Sakaguchi et al.
    2020, arXiv:1907.10641)."""

    summary = "which name a sentence means: accuracy by likelihood"
    citation = "Sakaguchi et al. 2020, arXiv:1907.10641"
    sources = {"": "qa/winogrande"}
    template = "{}"
    measure = "byte"

    def asked(self, question: str, options: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """As ``Choice.asked``.

        Raises:
            BadRow: the question has no gap.
        """
        before, gap, after = question.partition("_")
        if not gap or not before.strip():
            raise BadRow("column 'question' has no gap '_' after some words")
        return before.rstrip(), tuple(f"{option}{after}" for option in options)
