"""BLEU (Papineni et al. 2002) as sacrebleu computes it (Post 2018, arXiv:1804.08771)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide, need

ORDER = 4


@dataclass(frozen=True)
class Bleu(Metric):
    """100 BP exp(mean_n log p_n), n = 1..4, with sacrebleu's ``exp`` smoothing and closest reference length.

    Statistics of a row: matches of each order [4], n-grams of each order [4], length, reference length.
    """

    tokenize: str = "13a"  # sacrebleu's tokenizers: 13a, intl, zh, char, ja-mecab, flores200 ...

    name = "bleu"
    label = "BLEU"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        bleu = need("sacrebleu", "sacrebleu").BLEU(tokenize=self.tokenize, effective_order=True)
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
