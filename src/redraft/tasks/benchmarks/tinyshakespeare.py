"""Tinyshakespeare: speeches of Shakespeare's plays."""

from __future__ import annotations

from redraft.tasks.benchmarks.shared.pairs import PlainText
from redraft.tasks.text import Text


class Tinyshakespeare(PlainText):
    """Likelihood of the texts, and continuations compared with them (Karpathy 2015)."""

    kind = Text
    summary = "language modelling: speeches of Shakespeare's plays"
    citation = "Karpathy 2015"
    sources = {"": "lm/tinyshakespeare"}
