"""BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from redraft.errors import UserError, suggest
from redraft.metrics import Array, Metric, divide, need
from redraft.metrics.shared import scripts

ORDER = 4
TOKENIZERS = ("13a", "intl", "zh", "ja-mecab", "ko-mecab", "char", "none", "flores101", "flores200", "spBLEU-1K")


@dataclass(frozen=True)
class Bleu(Metric):
    """100 BP exp(mean_n log p_n), n = 1..4, with sacrebleu's ``exp`` smoothing and closest reference length.

    Statistics of a row: matches of each order [4], n-grams of each order [4], length, reference length.

    Raises:
        UserError: unknown tokenizer.
    """

    tokenize: str = ""  # one of TOKENIZERS; empty: 13a, or by the script of the references (``fitted``)

    name = "bleu"
    label = "BLEU"

    def __post_init__(self) -> None:
        if self.tokenize and self.tokenize not in TOKENIZERS:
            raise UserError(f"BLEU has no tokenizer '{self.tokenize}'.", suggest(self.tokenize, TOKENIZERS))

    def details(self) -> list[str]:
        """As in sacrebleu's signature."""
        version = need("sacrebleu", "sacrebleu").__version__
        return [
            "nrefs:var",
            "case:mixed",
            "eff:no",
            f"tok:{self.tokenize or '13a'}",
            "smooth:exp",
            f"version:{version}",
        ]

    def fitted(self, references: Sequence[str]) -> Bleu:
        """The metric with the tokenizer for the script of the references, unless one was named."""
        return self if self.tokenize else Bleu(scripts.bleu_tokenizer(references))

    def ready(self) -> None:
        """Check that the tokenizer is installed.

        Raises:
            UserError: it is not.
        """
        self._scorer()

    def _scorer(self) -> Any:
        try:
            return need("sacrebleu", "sacrebleu").BLEU(tokenize=self.tokenize or "13a", effective_order=True)
        except (ImportError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"BLEU's tokenizer '{self.tokenize}' can't be used: {reason}",
                "Install it, or choose another: --metric-option bleu.tokenize=char.",
            ) from None

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        bleu = self._scorer()
        rows = [bleu.sentence_score(h, list(r)) for h, r in zip(hypotheses, references, strict=True)]
        return np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in rows], dtype=np.float64)

    def combine(self, total: Array) -> Array:
        return _bleu(total, effective_order=False)

    def row_values(self, stats: Array) -> Array:
        """Sentence BLEU, [rows, k] -> [rows]; orders without an n-gram in a short row are left out of the mean."""
        return _bleu(stats, effective_order=True)


def _bleu(total: Array, effective_order: bool) -> Array:
    matches, totals = total[..., :ORDER], total[..., ORDER : 2 * ORDER]
    length, reference = total[..., -2], total[..., -1]
    # exp smoothing: the k-th order without a match has 1 / 2^k matches
    empty = (matches == 0) & (totals > 0)
    smooth = np.exp2(-np.cumsum(empty, axis=-1))
    precision = divide(np.where(empty, smooth, matches), totals)
    orders = (totals > 0).sum(-1) if effective_order else np.full(length.shape, ORDER)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(totals > 0, np.log(precision), 0.0 if effective_order else -np.inf).sum(-1)
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
        value = 100.0 * brevity * np.exp(logs / orders)
    return np.where((matches.sum(-1) == 0) | (length == 0), 0.0, value)
