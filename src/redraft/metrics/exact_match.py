"""Exact match after SQuAD's normalisation (Rajpurkar et al. 2016, arXiv:1606.05250)."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

from redraft.metrics import Mean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True)
class ExactMatch(Mean):
    """Per cent of rows whose normalised text equals one of the references."""

    name = "exact_match"
    label = "exact match %"
    decides = True

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        return float(any(normalise(hypothesis) == normalise(r) for r in references))
