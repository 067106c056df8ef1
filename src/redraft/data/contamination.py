"""Contamination: rows of a test set that also occur, exactly or nearly, among training rows.

Rows are compared after normalisation (case, width, punctuation, spaces). A row is a *duplicate* if its whole text
equals that of a training row, has the *same input* if only its prompt does, and is a *near duplicate* if at least 70 %
of its 8-grams of words occur in the training rows (the rule of PaLM, Chowdhery et al. 2022, arXiv:2204.02311,
section 8). Characters count as words in scripts that are written without spaces. A text of fewer than 8 words has no
near duplicates, only exact ones.

N-grams are 64-bit hashes in sorted arrays, so that a hundred thousand rows take seconds: two different ones are equal
with probability 2^-64 a pair.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from redraft.data.examples import Example, key_text, normalise

ORDER = 8  # words of an n-gram
SHARE = 0.7  # of a row's n-grams, from which it is a near duplicate
SHOWN = 5  # examples that a report names
_EXCERPT = 80  # characters of an example
# Thai, Lao, Burmese, Khmer, kana and Han: words are not separated by spaces.
_SPACELESS = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse
_POWERS = np.cumprod(np.full(256, 0xD1342543DE82EF95, dtype=np.uint64))
_CHUNK = 512  # texts that are hashed together
_MOST_OWNERS = 64  # training rows of an n-gram that are looked at for the nearest one


@dataclass(frozen=True)
class Overlap:
    """A test row, and a training row that it resembles."""

    where: str  # file:line of the test row
    train: str
    kind: str  # duplicate, same input or near duplicate
    share: float  # of the test row's n-grams that occur in training rows
    text: str  # the beginning of the test row


@dataclass(frozen=True)
class Contamination:
    """How many test rows also occur among the training rows. Each row is counted once, as the first that holds."""

    rows: int
    train_rows: int
    duplicates: int
    same_input: int
    near: int
    examples: tuple[Overlap, ...] = ()  # of each kind in turn
    overlaps: tuple[Overlap, ...] = field(default=(), repr=False)  # all of them, in the order of the rows

    @property
    def total(self) -> int:
        """Rows of any kind."""
        return self.duplicates + self.same_input + self.near

    def brief(self) -> Contamination:
        """The same without the list of all overlaps."""
        return replace(self, overlaps=())

    def __str__(self) -> str:
        if not self.total:
            return f"none of {self.rows:,} rows occurs among the {self.train_rows:,} training rows"
        first = self.examples[0]
        return (
            f"{self.total:,} of {self.rows:,} rows occur among the {self.train_rows:,} training rows: "
            f"{self.duplicates:,} duplicates, {self.same_input:,} with the same input, {self.near:,} near duplicates; "
            f"for example {first.where} and {first.train} ({first.kind}): {first.text!r}"
        )


def contamination(train: Sequence[Example], test: Sequence[Example]) -> Contamination:
    """Which test rows occur among the training rows, by the rules above."""
    kinds: dict[int, tuple[str, str]] = {}  # test row -> kind, place of the training row
    trained, tested = ([normalise(_text(example)) for example in rows] for rows in (train, test))
    whole = {text: example.where for text, example in zip(reversed(trained), reversed(train), strict=True)}
    inputs = {normalise(key_text(example)): example.where for example in reversed(train) if example.prompt is not None}
    for row, (text, example) in enumerate(zip(tested, test, strict=True)):
        if text in whole:
            kinds[row] = "duplicate", whole[text]
        elif example.prompt is not None and (key := normalise(key_text(example))) in inputs:
            kinds[row] = "same input", inputs[key]
    shares, nearest = _shares(trained, tested)
    for row, other in nearest.items():
        kinds.setdefault(row, ("near duplicate", train[other].where))
    overlaps = tuple(
        Overlap(test[row].where, place, kind, float(shares[row]), _text(test[row])[:_EXCERPT])
        for row, (kind, place) in sorted(kinds.items())
    )
    equal, same, near = (
        [one for one in overlaps if one.kind == kind] for kind in ("duplicate", "same input", "near duplicate")
    )
    turns = [rows[turn] for turn in range(SHOWN) for rows in (equal, same, near) if turn < len(rows)]
    counts = {"duplicates": len(equal), "same_input": len(same), "near": len(near)}
    return Contamination(len(test), len(train), **counts, examples=tuple(turns[:SHOWN]), overlaps=overlaps)


def _text(example: Example) -> str:
    return example.target if example.prompt is None else f"{example.prompt}\n{example.target}"


def _shares(trained: Sequence[str], tested: Sequence[str]) -> tuple[np.ndarray, dict[int, int]]:
    """For each tested text the share of its n-grams that occur in trained texts, [tests] float64; and for those with
    at least ``SHARE`` the trained text that has most of them."""
    known, owners = _grams(trained)
    asked, rows = _grams(tested)
    order = np.argsort(asked)  # sorted questions read the sorted answers once
    ranked = np.sort(known)
    hit = np.zeros(len(asked), dtype=bool)
    if len(ranked):
        place = np.searchsorted(ranked, asked[order])
        hit[order] = ranked[np.minimum(place, len(ranked) - 1)] == asked[order]
    shares = np.bincount(rows, hit, minlength=len(tested)) / np.maximum(np.bincount(rows, minlength=len(tested)), 1)
    near = np.flatnonzero(shares >= SHARE)
    of_near = hit & np.isin(rows, near)
    found = np.isin(known, np.unique(asked[of_near]))
    texts: dict[int, list[int]] = {}
    for gram, text in zip(known[found].tolist(), owners[found].tolist(), strict=True):
        if len(several := texts.setdefault(gram, [])) < _MOST_OWNERS:
            several.append(text)
    counts: dict[int, Counter[int]] = {row: Counter() for row in near.tolist()}
    for gram, row in zip(asked[of_near].tolist(), rows[of_near].tolist(), strict=True):
        counts[row].update(texts[gram])
    return shares, {row: count.most_common(1)[0][0] for row, count in counts.items()}


def _grams(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all n-grams of some texts [n] uint64, and the number of the text of each [n] int64, in order."""
    words, owners = _words(texts)
    count = max(0, len(words) - ORDER + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(ORDER):
        hashes = hashes * _BASE + words[place : place + count]
    inside = owners[:count] == owners[ORDER - 1 :][:count]  # n-grams don't cross from one text into the next
    return _mixed(hashes[inside]), owners[:count][inside]


def _words(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all words [n] uint64, sum over bytes of byte * base^position, and the text of each [n] int64."""
    hashes, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(texts), _CHUNK):
        part = (text.replace("\n", " ") for text in texts[first : first + _CHUNK])
        joined = "\n".join(text if text.isascii() else _SPACELESS.sub(r" \1 ", text) for text in part)
        whole = np.frombuffer(joined.encode(), dtype=np.uint8)
        gap = (whole == ord(" ")) | (whole == ord("\n"))
        starts = np.flatnonzero(~gap & np.concatenate([[True], gap[:-1]]))
        if not len(starts):
            continue
        data, gap = whole[starts[0] :], gap[starts[0] :]
        before = int((whole[: starts[0]] == ord("\n")).sum())  # texts without a word
        starts = starts - starts[0]
        since = np.arange(len(data)) - np.repeat(starts, np.diff(starts, append=len(data)))
        values = np.where(gap, np.uint64(0), (data.astype(np.uint64) + np.uint64(1)) * _POWERS[since % len(_POWERS)])
        hashes.append(_mixed(np.add.reduceat(values, starts)))
        owners.append(first + before + np.cumsum(data == ord("\n"))[starts])
    return np.concatenate(hashes), np.concatenate(owners)


def _mixed(values: np.ndarray) -> np.ndarray:
    """A fixed bijection of 64-bit numbers that spreads their bits (the finaliser of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
