"""ROUGE (Lin 2004, aclanthology W04-1013) through the rouge-score library."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.errors import UserError
from redraft.metrics import Array, Mean, need
from redraft.metrics.shared import scripts


class UnicodeTokenizer:
    """Lower-cased words of any script, with their marks; of scripts without spaces, characters.

    rouge-score's default tokenizer drops every letter outside a-z. On plain ASCII the two are equal.
    """

    def tokenize(self, text: str) -> list[str]:
        """The tokens of a text."""
        return scripts.words(text.lower())


@dataclass(frozen=True)
class Rouge(Mean):
    """F-measure of n-gram overlap (rouge1, rouge2) or of the longest common subsequence (rougeL).

    Mean over rows of the best reference's value, without stemming.

    Raises:
        UserError: unknown variant.
    """

    variant: str = "rougeL"  # rouge1 | rouge2 | rougeL

    def __post_init__(self) -> None:
        if self.variant not in ("rouge1", "rouge2", "rougeL"):
            raise UserError(f"ROUGE has no variant '{self.variant}'.", "Known: rouge1, rouge2, rougeL.")

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.variant.lower()

    def details(self) -> list[str]:
        """The words are those of ``metrics.shared.scripts``."""
        return ["tok:words", "stem:no", "case:lower"]

    @property
    def label(self) -> str:  # type: ignore[override]
        return f"ROUGE-{self.variant[-1]}"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        scorer = need("rouge_score.rouge_scorer", "rouge-score").RougeScorer(
            [self.variant], use_stemmer=False, tokenizer=UnicodeTokenizer()
        )
        rows = zip(hypotheses, references, strict=True)
        values = [scorer.score_multi(list(r), h)[self.variant].fmeasure for h, r in rows]
        return np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)

    def row(self, hypothesis: str, references: Sequence[str]) -> float:
        return float(self.statistics([hypothesis], [references])[0, 0])
