"""Tinystories: short stories in the words of a child."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import PlainText
from redraft.tasks.text import Text


class Tinystories(PlainText):
    """Likelihood of the texts, and continuations compared with them (Eldan & Li 2023, arXiv:2305.07759)."""

    kind = Text
    summary = "language modelling: short stories in the words of a child"
    citation = "Eldan & Li 2023, arXiv:2305.07759"
    sources = {"": "lm/tinystories"}
