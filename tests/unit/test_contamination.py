"""Contamination of test rows by training rows: planted copies are found, and nothing else, as by comparing all."""

from __future__ import annotations

import random

import pytest

from redraft.data.contamination import ORDER, SHARE, contamination
from redraft.data.examples import Example, normalise

WORDS = [f"w{n}" for n in range(300)]


def rows(count: int, seed: int, words: int = 20, of: list[str] = WORDS) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(of, k=draw.randint(0, words))) for _ in range(count)]


def texts(found: list[str], name: str) -> list[Example]:
    return [Example(None, text, f"{name}:{number}") for number, text in enumerate(found, 1)]


def grams(text: str) -> list[tuple[str, ...]]:
    words = normalise(text).split()
    return [tuple(words[at : at + ORDER]) for at in range(len(words) - ORDER + 1)]


def test_unrelated_rows_are_clean() -> None:
    found = contamination(texts(rows(200, 1), "a"), texts([f"x {row}" for row in rows(100, 2)], "b"))
    assert (found.total, found.examples) == (0, ())
    assert str(found) == "none of 100 rows occurs among the 200 training rows"


def test_planted_rows_are_found_with_the_row_they_come_from() -> None:
    train = rows(300, 3, 40)
    long = next(number for number, row in enumerate(train) if len(row.split()) > 30)
    words = train[long].split()
    test = [
        train[long].upper().replace(" ", ",  ") + "!",
        " ".join([*words[:-2], "another", "end"]),
        " ".join(words[:12]) + " " + " ".join(f"y{n}" for n in range(30)),  # too little of it
        "something else",
    ]
    found = contamination(texts(train, "a"), texts(test, "b"))
    assert [(one.where, one.train, one.kind) for one in found.overlaps] == [
        ("b:1", f"a:{long + 1}", "duplicate"),
        ("b:2", f"a:{long + 1}", "near duplicate"),
    ]
    assert (found.duplicates, found.same_input, found.near, found.rows) == (1, 0, 1, 4)
    assert "2 of 4 rows" in str(found) and "b:1 and a:" in str(found)


def test_pairs_with_the_same_input() -> None:
    train = [Example("How are you?", "fine", "a:1"), Example("Who?", "me", "a:2")]
    test = [Example("how are you", "Fine.", "b:1"), Example("WHO", "you", "b:2"), Example("Why?", "me", "b:3")]
    found = contamination(train, test)
    assert [(one.train, one.kind) for one in found.overlaps] == [("a:1", "duplicate"), ("a:2", "same input")]


@pytest.mark.parametrize("seed", range(3))
def test_shares_are_those_of_comparing_all_ngrams(seed: int) -> None:
    """Few different words, so that n-grams recur by chance; empty texts, texts of one word, and other scripts too."""
    of = ["a", "b", "\u00e4", "..."]
    train, test = rows(60, seed, 30, of), rows(60, seed + 9, 14, of)
    known = {gram for row in train for gram in grams(row)}
    found = contamination(texts(train, "a"), texts(test, "b"))
    kinds = {one.where: one for one in found.overlaps}
    whole = {normalise(row) for row in train}
    for number, row in enumerate(test, 1):
        own = grams(row)
        share = sum(gram in known for gram in own) / len(own) if own else 0.0
        one = kinds.get(f"b:{number}")
        if normalise(row) in whole:
            assert one is not None and one.kind == "duplicate"
        elif share >= SHARE:
            assert one is not None and one.kind == "near duplicate" and one.share == pytest.approx(share)
            near = train[int(one.train.partition(":")[2]) - 1]
            assert set(own) & set(grams(near))
        else:
            assert one is None


def test_characters_are_words_where_no_spaces_stand_between_them() -> None:
    sentence = "\u5f7c\u5973\u306f\u6bce\u65e5\u5b66\u6821\u3078\u884c\u304d\u307e\u3059\u304b\u3089\u4eca\u65e5\u3082"
    found = contamination(texts([sentence], "a"), texts([sentence[:-1] + "\u5927", "\u5927" * 16], "b"))
    assert [one.kind for one in found.overlaps] == ["near duplicate"]
