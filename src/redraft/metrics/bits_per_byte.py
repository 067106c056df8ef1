"""Bits per byte: the negative log-likelihood of a text, or its bound, over the UTF-8 bytes of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, Metric, divide


@dataclass(frozen=True)
class BitsPerByte(Metric):
    """sum(nats) / (ln 2 * sum(bytes)). Comparable between tokenizers, unlike perplexity per token.

    It is a property of a model and a text, not of a generated text: its statistics (nats, bytes) come from the
    validation pass, and ``statistics`` refuses texts.
    """

    name = "bits_per_byte"
    label = "bits per byte"
    better = -1

    def statistics(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Array:
        raise TypeError("bits per byte is measured by a model, not on generated text")

    @staticmethod
    def of(nats: Sequence[float], sizes: Sequence[int]) -> Array:
        """Statistics [rows, 2] from the nats and the UTF-8 bytes of each row."""
        return np.stack([np.asarray(nats, dtype=np.float64), np.asarray(sizes, dtype=np.float64)], axis=1)

    def combine(self, total: Array) -> Array:
        return divide(total[..., 0], total[..., 1]) / math.log(2)
