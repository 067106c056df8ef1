"""The estimates behind the number of drafts, and the choice that follows from them."""

from __future__ import annotations

import pytest
import torch

from redraft.serve.draft_lengths import Acceptance, DraftLengths, PassTime


@pytest.mark.parametrize(
    ("rate", "drafts", "tokens"), [(0.8, 4, 3.3616), (0.8, 15, 4.8593), (0.9, 4, 4.0951), (0.9, 15, 8.1470)]
)
def test_the_expected_tokens_of_a_cycle_follow_the_closed_form(rate: float, drafts: int, tokens: float) -> None:
    """(1 - a^(g+1)) / (1 - a) where every draft is accepted with probability a."""
    found = Acceptance()
    found.tried, found.kept = [1e9] * 31, [1e9 * rate] * 31
    assert found.tokens(drafts) == pytest.approx(tokens, abs=1e-4)


def test_a_rejected_draft_says_nothing_about_those_after_it() -> None:
    found = Acceptance()
    for _ in range(500):
        found.observe(8, 2)
    assert found.tried[2] > 50 and found.tried[3] == 0
    assert found.tokens(2) == pytest.approx(3, abs=0.1)
    assert found.tokens(8) - found.tokens(2) < 0.1


def test_the_time_of_a_pass_is_a_line() -> None:
    found = PassTime()
    for positions in (4, 8, 16, 32):
        found.observe(positions, 0.010 + 0.002 * positions)
    assert found.seconds(20) == pytest.approx(0.050, rel=0.01)
    assert found.seconds(0) == pytest.approx(0.010, rel=0.05)


def lengths(rate: float, fixed: float, each: float) -> DraftLengths:
    """Passes that take fixed + each n seconds, a tenth of that to draft, and drafts accepted at a rate."""
    found = DraftLengths(torch.device("cpu"))
    found.acceptance.tried, found.acceptance.kept = [1e6] * 31, [1e6 * rate] * 31
    for positions in (1, 4, 16, 64, 256):
        found.times["text"].observe(positions, fixed + each * positions)
        found.times["draft"].observe(positions, (fixed + each * positions) / 10)
    return found


def test_long_drafts_pay_where_a_pass_costs_the_same_and_short_ones_under_load() -> None:
    idle = lengths(0.9, fixed=0.03, each=0.0)
    assert idle.best(1) == idle.best(64) >= 15
    busy = lengths(0.9, fixed=0.03, each=0.001)
    chosen = [busy.best(rows) for rows in (1, 8, 64, 1000)]
    assert chosen == sorted(chosen, reverse=True) and chosen[0] > chosen[-1]
    assert lengths(0.05, fixed=0.03, each=0.001).best(32) == 0
    assert DraftLengths(torch.device("cpu")).best(1) == -1, "nothing is known yet"


def test_a_draft_is_made_now_and_then_where_none_pays() -> None:
    found = lengths(0.05, fixed=0.03, each=0.001)
    chosen = [found.best(32) for _ in range(200)]
    assert 0 < sum(count > 0 for count in chosen) < 8
