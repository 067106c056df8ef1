"""Storybooks: children's stories by people from African Storybook and Pratham Books."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import PlainText
from redraft.tasks.text import Text


class Storybooks(PlainText):
    """Likelihood of the texts, and continuations compared with them (African Storybook and Pratham Books, CC BY)."""

    kind = Text
    summary = "language modelling: children's stories by people from African Storybook and Pratham Books"
    citation = "African Storybook and Pratham Books, CC BY"
    sources = {"": "lm/storybooks"}
