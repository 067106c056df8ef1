"""Similarity of the n-gram distributions of generated and human texts, as two corpora."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide
from redraft.metrics.shared import scripts


@dataclass(frozen=True)
class NgramSimilarity(Metric):
    """100 (1 - JSD(P, Q)): P and Q are the n-gram distributions of all generated and all reference texts.

    The n-grams are words, pairs of words and character trigrams, each hashed to ``buckets`` buckets; JSD is the
    Jensen-Shannon divergence in bits (Lin 1991), averaged over the three. Garbled spelling, repetition and a narrow
    vocabulary all lower the value. It needs no other model and does not measure meaning. Its level depends on the
    amount of text: compare only values from the same rows. Statistics: counts of both sides, [6 buckets].
    """

    buckets: int = 1024

    name = "ngram_similarity"
    label = "n-gram similarity"

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        ours = np.stack([self._counts(h) for h in hypotheses])
        theirs = np.stack([np.mean([self._counts(r) for r in several], axis=0) for several in references])
        return np.concatenate([ours, theirs], axis=1)

    def _counts(self, text: str) -> Array:
        words = scripts.split(text)
        joined = " ".join(words)
        views = (
            words,
            [f"{a} {b}" for a, b in zip(words, words[1:], strict=False)],
            [joined[i : i + 3] for i in range(len(joined) - 2)],
        )
        hashed = [[zlib.crc32(gram.encode()) % self.buckets for gram in grams] for grams in views]
        return np.concatenate([np.bincount(np.array(h, dtype=np.int64), minlength=self.buckets) for h in hashed]) * 1.0

    def combine(self, total: Array) -> Array:
        both = total.reshape(*total.shape[:-1], 2, 3, self.buckets)
        p, q = (divide(side, side.sum(-1, keepdims=True)) for side in (both[..., 0, :, :], both[..., 1, :, :]))
        middle = (p + q) / 2
        divergence = (_entropy(middle) - (_entropy(p) + _entropy(q)) / 2).mean(-1)
        empty = (both.sum(-1) == 0).any((-1, -2))  # without text on one side, the similarity is 0
        return np.where(empty, 0.0, 100.0 * (1.0 - np.clip(divergence, 0.0, 1.0)))


def _entropy(p: Array) -> Array:
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)
