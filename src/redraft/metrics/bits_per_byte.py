"""Bits per byte: the negative log-likelihood of a text, or a bound on it, per UTF-8 byte."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide


@dataclass(frozen=True)
class BitsPerByte(Metric):
    """sum(nats) / (ln 2 * sum(bytes)). Comparable between tokenizers, unlike perplexity per token.

    It measures a model on given texts, not generated texts: statistics (nats, bytes) come from ``of``, and
    ``statistics`` raises an error.
    """

    name = "bits_per_byte"
    label = "bits per byte"
    better = -1

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        """Not available.

        Raises:
            TypeError: always; use ``of``.
        """
        raise TypeError("bits per byte needs a model's log-likelihoods, not generated texts")

    @staticmethod
    def of(nats: Sequence[float], sizes: Sequence[int]) -> Array:
        """Statistics [rows, 2] from the nats and the number of UTF-8 bytes of each row."""
        return np.stack([np.asarray(nats, dtype=np.float64), np.asarray(sizes, dtype=np.float64)], axis=1)

    def combine(self, total: Array) -> Array:
        return divide(total[..., 0], total[..., 1]) / math.log(2)
