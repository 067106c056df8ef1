"""Trivial baselines: copying the input, the most common answer, the nearest training example, an n-gram model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redraft.metrics import Array, need

END = 0xFF  # marks the start and end of a document; no byte of UTF-8 has this value


def copy_input(prompts: Sequence[str]) -> list[str]:
    """The prompt as the answer."""
    return list(prompts)


def most_common(targets: Sequence[str], rows: int) -> list[str]:
    """The most common training target for every row, the first of equally common ones (the majority class)."""
    seen: dict[str, int] = {}
    for target in targets:
        seen[target] = seen.get(target, 0) + 1
    return [max(seen, key=seen.__getitem__)] * rows


def nearest(prompts: Sequence[str], train_prompts: Sequence[str], train_targets: Sequence[str]) -> list[str]:
    """The target of the training example whose prompt is nearest: cosine of TF-IDF word uni- and bigrams.

    This is what retrieval alone achieves (cf. Khandelwal et al. 2020, arXiv:1911.00172).
    """
    text = need("sklearn.feature_extraction.text", "scikit-learn")
    vectors = text.TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]", sublinear_tf=True)
    known = vectors.fit_transform(train_prompts)
    asked = vectors.transform(prompts)
    answers: list[str] = []
    for start in range(0, asked.shape[0], 256):  # in blocks, because the product has rows x training rows entries
        best = np.asarray((asked[start : start + 256] @ known.T).todense()).argmax(1)
        answers += [train_targets[i] for i in best]
    return answers


@dataclass
class NgramModel:
    """Interpolated Kneser-Ney model of bytes (Kneser & Ney 1995; Chen & Goodman 1999, doi:10.1006/csla.1999.0128).

        P_n(w | h) = max(c(h w) - D_n, 0) / c(h .) + D_n N(h .) / c(h .) P_{n-1}(w | h')

    Here c are counts at the highest order, and numbers of different left neighbours at lower orders. N(h .) is the
    number of different bytes that follow h, h' is h without its first byte, D_n = n1 / (n1 + 2 n2) from the counts of
    counts, and P_0 is uniform over 256 symbols (255 byte values and the end of a document). Bytes make the likelihood
    comparable with any tokenizer's. An n-gram of at most 8 bytes fits into one integer, so tables are sorted arrays.
    """

    order: int
    tables: list[_Table]  # of n-grams of length 1 .. order

    @classmethod
    def fit(cls, texts: Sequence[str], order: int = 6, most_bytes: int = 8_000_000) -> NgramModel:
        """Count n-grams of the first texts, up to ``most_bytes`` bytes.

        Raises:
            ValueError: the order is not in 1 to 8, or there is no text.
        """
        if not 1 <= order <= 8:
            raise ValueError("the order of a byte n-gram model must be in 1 to 8")
        if not texts:
            raise ValueError("there is no text to count")
        grams = np.concatenate([_grams(text, order) for text in _first(texts, most_bytes)])
        keys, counts = np.unique(grams, return_counts=True)
        tables = [_Table.of(keys, counts)]
        for n in range(order - 1, 0, -1):
            # count distinct longer n-grams without their first byte: numbers of different left neighbours
            keys, counts = np.unique(keys & _mask(n), return_counts=True)
            tables.append(_Table.of(keys, counts))
        return cls(order, tables[::-1])

    def log2(self, text: str) -> float:
        """log2-probability of a text and its end."""
        return float(np.log2(self.probability(_grams(text, self.order))).sum())

    def probability(self, grams: Array) -> Array:
        """P(last byte | bytes before it) of n-grams packed into integers, [N] uint64 -> [N]."""
        p = np.full(grams.shape, 1.0 / 256)
        for n, table in enumerate(self.tables, start=1):
            p = table.interpolate(grams & _mask(n), p)
        return p

    def bits_per_byte(self, texts: Sequence[str]) -> float:
        """Bits per UTF-8 byte of these texts. The bits include the ends of documents."""
        return -sum(self.log2(t) for t in texts) / max(1, sum(len(t.encode()) for t in texts))


@dataclass
class _Table:
    """Sorted n-grams of one order with their counts; for each context the sum of counts and the number of followers."""

    keys: Array
    counts: Array
    contexts: Array
    totals: Array
    followers: Array
    discount: float

    @classmethod
    def of(cls, keys: Array, counts: Array) -> _Table:
        contexts, first = np.unique(keys >> np.uint64(8), return_index=True)
        once, twice = int((counts == 1).sum()), int((counts == 2).sum())
        discount = once / (once + 2 * twice) if once else 0.5
        followers = np.diff(np.append(first, len(keys)))
        return cls(keys, counts, contexts, np.add.reduceat(counts, first), followers, min(discount, 0.95))

    def interpolate(self, grams: Array, lower: Array) -> Array:
        where, known = _lookup(self.contexts, grams >> np.uint64(8))
        at, seen = _lookup(self.keys, grams)
        total = self.totals[where]
        own = np.where(seen, self.counts[at] - self.discount, 0.0) / total
        return np.where(known, own + self.discount * self.followers[where] / total * lower, lower)


def _lookup(table: Array, keys: Array) -> tuple[Array, Array]:
    at = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return at, table[at] == keys


def _mask(n: int) -> np.uint64:
    return np.uint64((1 << (8 * n)) - 1)


def _grams(text: str, order: int) -> Array:
    """The n-gram that ends at each byte of a text and at its end, packed into integers: [bytes + 1] uint64."""
    raw = np.frombuffer(text.encode(), dtype=np.uint8)
    symbols = np.concatenate([np.full(order - 1, END), raw, [END]]).astype(np.uint64)
    grams = np.zeros(len(raw) + 1, dtype=np.uint64)
    for i in range(order):
        grams = (grams << np.uint64(8)) | symbols[i : i + len(grams)]
    return grams


def _first(texts: Sequence[str], most_bytes: int) -> list[str]:
    kept: list[str] = []
    size = 0
    for text in texts:
        size += len(text.encode())
        if kept and size > most_bytes:
            break
        kept.append(text)
    return kept
