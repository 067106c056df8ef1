"""The tables of constraints are kept within a number of bytes, which changes no text, and are computed part by part."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from redraft import registry
from redraft.constraints import build
from redraft.constraints.shared import reachability
from redraft.constraints.shared.tables import Tables
from redraft.errors import UserError
from tests import constrained

WANTED = {"regex": r"([a-f]{2,4} ?){2}[0-9]{1,3}", "length": "-9"}


class Owner:
    """Something that has tables."""


def test_tables_are_kept_within_a_number_of_bytes_and_forgotten_with_their_owner() -> None:
    kept, one, two = Tables(capacity=100), Owner(), Owner()
    kept.keep(one, "a", "first", 60)
    kept.keep(two, "a", "second", 40)
    assert (kept.find(one, "a"), kept.find(two, "a"), kept.size) == ("first", "second", 100)
    kept.find(one, "a")  # used last
    kept.keep(two, "b", "third", 30)
    assert (kept.find(two, "a"), kept.find(one, "a"), kept.size) == (None, "first", 90)
    kept.keep(one, "a", "too large", 101)
    assert kept.find(one, "a") is None and kept.size == 30
    del two
    gc.collect()
    kept.keep(one, "c", "fourth", 10)
    assert kept.size == 10, "the tables of an owner that is gone"


@pytest.mark.parametrize(("capacity", "together"), [(0, 1 << 26), (1 << 20, 1), (3000, 500)])
def test_neither_the_capacity_nor_the_parts_change_a_text(
    monkeypatch: pytest.MonkeyPatch, capacity: int, together: int
) -> None:
    def texts(mood: str) -> list[str]:
        sampler = registry.find("samplers", "confidence")(steps=4, order="random")
        return constrained.write(WANTED, "confidence", sampler, mood, 3, 10, temperature=1.0, rows=3)

    moods = ("noise",)
    expected = [texts(mood) for mood in moods]
    small = Tables(capacity)
    monkeypatch.setattr(reachability, "tables", lambda: small)
    monkeypatch.setattr(reachability, "_MAX_TABLE", together)
    sizes = []
    keep = small.keep
    monkeypatch.setattr(small, "keep", lambda *given: (keep(*given), sizes.append(small.size)))
    assert [texts(mood) for mood in moods] == expected
    assert max(sizes) <= capacity
    assert all(constrained.holds("regex", WANTED["regex"], text) for text in expected[0])


def test_users_of_an_automaton_share_the_tables_of_open_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Tables()
    monkeypatch.setattr(reachability, "tables", lambda: shared)
    tokenizer = constrained.real_tokenizer()
    first, second = (build("regex", "[ab]{3,40}", tokenizer)._reach for _ in range(2))
    (one,), (two,) = first.tails(np.array([30])), second.tails(np.array([30]))
    assert one is two and one.shape == (31, first.automaton.end + 1)


def test_a_row_whose_tables_would_be_too_large_is_refused_before_the_first_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reachability, "_MAX_ROW", 1000)
    with pytest.raises(UserError, match="states, which is too many for 100 positions"):
        constrained.write(WANTED, "confidence", registry.find("samplers", "confidence")(steps=4), "noise", 0, 100)
