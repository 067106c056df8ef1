"""Laws of every curriculum: it begins with what an autoregressive network computes and ends with the family's own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from redraft.curricula import build_curriculum
from redraft.curricula.anneal import Anneal, annealed_mask
from redraft.curricula.base import Curriculum
from redraft.curricula.blocks import Blocks
from redraft.errors import UserError
from redraft.models.transformer import Config, Transformer
from redraft.objectives.autoregressive import Autoregressive
from redraft.registry import find, names
from redraft.types import AttentionPattern, Batch, Forward, Prepared, QueryMask
from tests.tiny import VOCABULARY, family, pairs, without

A, B, C = VOCABULARY.letters
EOS, SEP = VOCABULARY.eos_id, VOCABULARY.sep_id

each_curriculum = pytest.mark.parametrize("name", names("curricula"))
each_kind = pytest.mark.parametrize("paired", [True, False], ids=["paired", "plain"])


def batch(paired: bool) -> Batch:
    rows = [([A, B, SEP], [C, A, A, B, EOS]), ([C, SEP], [B, EOS]), ([B, C, A, SEP], [B, B, A, EOS])]
    made = pairs(rows, length=10)
    return made if paired else replace(made, prompt=None)


def network() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(Config(VOCABULARY.vocab_size, dim=32, layers=2, heads=2, max_length=16, shift=1)).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return made


def prepared(curriculum: Curriculum | None, progress: float, paired: bool) -> Prepared:
    spec, objective = family("masked", paired, shift=1)
    generator = torch.Generator().manual_seed(1)
    if curriculum is None:
        return objective.prepare(batch(paired), spec, generator)
    return curriculum.prepare(objective, batch(paired), spec, progress, generator)


@each_curriculum
@each_kind
def test_at_first_the_network_computes_what_the_autoregressive_one_does(name: str, paired: bool) -> None:
    first = prepared(find("curricula", name)(), 0.0, paired)
    causal = replace(without(first.request, QueryMask), attention=AttentionPattern("causal"))
    with torch.no_grad():
        torch.testing.assert_close(network()(first.request), network()(causal))


@each_curriculum
@each_kind
def test_in_the_end_it_computes_what_the_family_does(name: str, paired: bool) -> None:
    last, own = prepared(find("curricula", name)(), 1.0, paired), prepared(None, 1.0, paired)
    assert torch.equal(last.request.tokens, own.request.tokens) and torch.equal(last.target, own.target)
    with torch.no_grad():
        assert torch.equal(network()(last.request), network()(own.request))


@each_curriculum
@each_kind
@pytest.mark.parametrize("progress", [0.0, 0.2, 0.45, 0.7, 0.95, 1.0])
def test_padding_is_never_seen_and_what_counts_stays_the_same(name: str, paired: bool, progress: float) -> None:
    curriculum = find("curricula", name)()
    spec, objective = family("masked", paired, shift=1)
    clean = batch(paired)
    changed = replace(clean, ids=torch.where(clean.valid, clean.ids, A))
    answers = []
    for rows in (clean, changed):
        made = curriculum.prepare(objective, rows, spec, progress, torch.Generator().manual_seed(3))
        with torch.no_grad():
            answers.append(network()(made.request))
        assert made.tokens == int(rows.target.sum())
        assert bool(made.request.tokens[~rows.target].ne(spec.tokens.mask_id).all()), "a prompt was corrupted"
        assert bool(objective.loss(torch.zeros(len(made.target), spec.tokens.vocab_size), made).loss.isfinite())
    assert torch.equal(*answers)


def make_request(rows: int = 40, width: int = 24) -> Forward:
    pos = torch.arange(width).expand(rows, width)
    return Forward(tokens=pos, positions=pos, targets=pos, attention=AttentionPattern("full"))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_anneal_shows_the_stated_share_of_what_follows(share: float) -> None:
    request = make_request()
    mask = annealed_mask(request, share, torch.Generator().manual_seed(0))
    ahead = torch.ones(24, 24).triu(1).bool()
    assert bool(mask[:, ~ahead].all())
    seen, count = float(mask[:, ahead].float().mean()), 40 * int(ahead.sum())
    assert abs(seen - share) <= 4 * math.sqrt(share * (1 - share) / count)


def test_anneal_shows_no_more_than_the_family_does() -> None:
    request = replace(make_request(), attention=AttentionPattern("block", 4))
    mask = annealed_mask(request, 0.9, torch.Generator().manual_seed(0))
    stage = torch.arange(24) // 4
    assert not bool(mask[:, stage[:, None] < stage].any())


def test_blocks_double_then_all_is_one_then_they_halve() -> None:
    curriculum = Blocks(grow=0.5, shrink=0.2)
    grown = [curriculum.attention(AttentionPattern("block", 4), 16, p / 100) for p in range(100)]
    sizes = [one.block for one in grown if one.kind == "block"]
    assert sizes[:50] == sorted(sizes[:50]) and set(sizes[:50]) == {1, 2, 4, 8}
    assert all(one.kind == "full" for one in grown[50:80])
    assert sizes[50:] == sorted(sizes[50:], reverse=True) and set(sizes[50:]) == {4, 8}
    assert curriculum.attention(AttentionPattern("block", 4), 16, 1.0) == AttentionPattern("block", 4)
    assert curriculum.attention(AttentionPattern("full"), 16, 0.9) == AttentionPattern("full")


def test_blocks_of_one_token_train_a_block_model_by_the_chain_rule() -> None:
    """At first a block model's loss under the curriculum is the autoregressive one, given the same conditionals."""
    spec, objective = family("block", paired=False)
    rows = batch(False)
    made = Blocks().prepare(objective, rows, spec, 0.0, torch.Generator().manual_seed(0))
    exact = Autoregressive().prepare(rows, family("autoregressive", False)[0], torch.Generator())
    assert torch.equal(made.target, exact.target)
    logits = torch.randn(len(made.target), spec.tokens.vocab_size, generator=torch.Generator().manual_seed(0))
    theirs = Autoregressive().loss(logits.clone(), exact).nats
    logits[:, spec.tokens.mask_id] = -torch.inf
    torch.testing.assert_close(objective.loss(logits, made).nats, theirs)


def test_anneal_has_no_second_stream() -> None:
    spec, objective = family("block")
    with pytest.raises(UserError, match="clean copy"):
        Anneal().prepare(objective, batch(True), spec, 0.0, torch.Generator())


@pytest.mark.parametrize(
    "table, says",
    [
        ({"until": 0.5}, "needs a name"),
        ({"name": "aneal"}, "Did you mean 'anneal'"),
        ({"name": "anneal", "untill": 0.5}, "Did you mean 'until'"),
        ({"name": "anneal", "until": 2.0}, "between 0 and 1"),
        ({"name": "blocks", "grow": 0.7, "shrink": 0.6}, "at most 1"),
    ],
)
def test_mistakes_are_said(table: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_curriculum(table)
    assert build_curriculum({}) is None
