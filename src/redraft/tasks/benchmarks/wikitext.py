"""Wikitext: articles of Wikipedia without <unk>."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import PlainText
from redraft.tasks.text import Text


class Wikitext(PlainText):
    """Likelihood of the texts, and continuations compared with them (Merity et al. 2017, arXiv:1609.07843)."""

    kind = Text
    summary = "language modelling: articles of Wikipedia without <unk>"
    citation = "Merity et al. 2017, arXiv:1609.07843"
    sources = {"": "lm/wikitext-nounk"}
