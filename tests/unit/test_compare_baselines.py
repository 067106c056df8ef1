"""Trivial baselines: the n-gram model is checked against a plain-dictionary Kneser-Ney, and retrieval by hand."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from redraft.compare.baselines import END, NgramModel, copy_input, most_common, nearest

TEXTS = ["the cat sat on the mat.", "the dog sat on the log.", "a cat and a dog: straße", ""]


def padded(text: str, order: int) -> list[int]:
    return [END] * (order - 1) + list(text.encode()) + [END]


def plain_kneser_ney(texts: list[str], order: int, context: list[int], symbol: int) -> float:
    """The recursion of the docstring, term by term, with dictionaries."""
    grams = {tuple(p[i : i + order]) for p in (padded(t, order) for t in texts) for i in range(len(p) - order + 1)}
    counts: dict[int, Counter[tuple[int, ...]]] = {order: Counter()}
    for text in texts:
        p = padded(text, order)
        counts[order].update(tuple(p[i : i + order]) for i in range(len(p) - order + 1))
    for n in range(order - 1, 0, -1):
        counts[n] = Counter(g[1:] for g in grams)
        grams = set(counts[n])

    def level(n: int, h: tuple[int, ...]) -> float:
        if n == 0:
            return 1 / 256
        lower = level(n - 1, h[1:])
        table = counts[n]
        once, twice = (sum(c == k for c in table.values()) for k in (1, 2))
        discount = min(once / (once + 2 * twice) if once else 0.5, 0.95)
        followers = {g: c for g, c in table.items() if g[:-1] == h}
        total = sum(followers.values())
        if not total:
            return lower
        mine = max(followers.get((*h, symbol), 0) - discount, 0) / total if (*h, symbol) in followers else 0.0
        return mine + discount * len(followers) / total * lower

    return level(order, tuple(context))


@pytest.mark.parametrize("order", [1, 2, 4])
def test_ngram_model_equals_plain_kneser_ney(order: int) -> None:
    model = NgramModel.fit(TEXTS, order)
    unseen = "the cog sat"
    p, total = padded(unseen, order), 0.0
    for i in range(order - 1, len(p)):
        total += math.log2(plain_kneser_ney(TEXTS, order, p[i - order + 1 : i], p[i]))
    assert model.log2(unseen) == pytest.approx(total)


@pytest.mark.parametrize("context", [b"the c", b"xyzzy", bytes([END] * 5)])
def test_ngram_probabilities_sum_to_one(context: bytes) -> None:
    model = NgramModel.fit(TEXTS, order=6)
    base = int.from_bytes(context, "big") << 8
    grams = np.array([base | symbol for symbol in range(256)], dtype=np.uint64)
    assert float(model.probability(grams).sum()) == pytest.approx(1.0)


def test_longer_contexts_help_on_regular_text() -> None:
    train, held = ["abcabcabd" * 30], ["abcabcabd" * 3]
    bits = [NgramModel.fit(train, order).bits_per_byte(held) for order in (1, 3, 6)]
    assert bits[0] > bits[1] > bits[2]


def test_ngram_model_rejects_orders_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="1 to 8"):
        NgramModel.fit(TEXTS, order=9)
    with pytest.raises(ValueError, match="no text"):
        NgramModel.fit([])


def test_most_bytes_limits_what_is_counted() -> None:
    small = NgramModel.fit(["aaaa", "bbbb"], order=2, most_bytes=4)
    assert small.log2("aa") > small.log2("bb")
    assert small.log2("bb") == NgramModel.fit(["aaaa"], order=2).log2("bb")


def test_nearest_returns_the_target_of_the_nearest_prompt() -> None:
    pytest.importorskip("sklearn")
    prompts = ["a red house", "the blue car", "green grass grows"]
    targets = ["ein rotes Haus", "das blaue Auto", "grünes Gras wächst"]
    asked = ["a blue car", "grass", "nothing alike"]
    found = nearest(asked, prompts, targets)
    assert found[:2] == ["das blaue Auto", "grünes Gras wächst"] and found[2] in targets


def test_copying_and_the_most_common_answer() -> None:
    assert copy_input(["a", "b"]) == ["a", "b"]
    assert most_common(["no", "yes", "yes", "no", "yes"], 3) == ["yes"] * 3


def test_counts_use_left_neighbours_below_the_highest_order() -> None:
    """'Francisco' is common but follows only one word, so it is unlikely after others."""
    followers: dict[str, set[str]] = defaultdict(set)
    text = "xq" * 50 + "axbxcxdxex"
    for left, right in zip(text, text[1:], strict=False):
        followers[right].add(left)
    assert len(followers["q"]) < len(followers["x"])
    model = NgramModel.fit([text], order=2)
    unseen = int.from_bytes(b"\x7e", "big") << 8  # an unseen context: the unigram decides
    p = model.probability(np.array([unseen | ord("q"), unseen | ord("x")], dtype=np.uint64))
    assert p[0] < p[1] / 3
