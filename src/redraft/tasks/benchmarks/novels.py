"""Novels: English novels, whole books held out."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import PlainText
from redraft.tasks.text import Text


class Novels(PlainText):
    """Likelihood of the texts, and continuations compared with them (public domain)."""

    kind = Text
    summary = "language modelling: English novels, whole books held out"
    citation = "public domain"
    sources = {"": "lm/novels"}
