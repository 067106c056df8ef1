"""Laws of every course: it begins with what an autoregressive network computes and ends with the family's own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from redraft.courses import Course, build_course
from redraft.courses.anneal import Anneal, sight
from redraft.courses.blocks import Blocks
from redraft.errors import UserError
from redraft.models.transformer import Config, Transformer
from redraft.objectives.autoregressive import Autoregressive
from redraft.registry import find, names
from redraft.types import Attend, Batch, Forward, Prepared
from tests.tiny import VOCABULARY, family, pairs

A, B, C = VOCABULARY.letters
EOS, SEP = VOCABULARY.eos_id, VOCABULARY.sep_id

each_course = pytest.mark.parametrize("name", names("courses"))
each_kind = pytest.mark.parametrize("conditional", [True, False], ids=["conditional", "plain"])


def batch(conditional: bool) -> Batch:
    rows = [([A, B, SEP], [C, A, A, B, EOS]), ([C, SEP], [B, EOS]), ([B, C, A, SEP], [B, B, A, EOS])]
    made = pairs(rows, length=10)
    return made if conditional else replace(made, prompt=None)


def network() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(Config(VOCABULARY.vocab_size, dim=32, layers=2, heads=2, max_length=16, shift=1)).eval()
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return made


def prepared(course: Course | None, progress: float, conditional: bool) -> Prepared:
    spec, objective = family("masked", conditional, shift=1)
    generator = torch.Generator().manual_seed(1)
    if course is None:
        return objective.prepare(batch(conditional), spec, generator)
    return course.prepare(objective, batch(conditional), spec, progress, generator)


@each_course
@each_kind
def test_at_first_the_network_computes_what_the_autoregressive_one_does(name: str, conditional: bool) -> None:
    first = prepared(find("courses", name)(), 0.0, conditional)
    causal = replace(first.ask, attend=Attend("causal"), mask=None)
    with torch.no_grad():
        torch.testing.assert_close(network()(first.ask), network()(causal))


@each_course
@each_kind
def test_in_the_end_it_computes_what_the_family_does(name: str, conditional: bool) -> None:
    last, own = prepared(find("courses", name)(), 1.0, conditional), prepared(None, 1.0, conditional)
    assert torch.equal(last.ask.x, own.ask.x) and torch.equal(last.target, own.target)
    with torch.no_grad():
        assert torch.equal(network()(last.ask), network()(own.ask))


@each_course
@each_kind
@pytest.mark.parametrize("progress", [0.0, 0.2, 0.45, 0.7, 0.95, 1.0])
def test_padding_is_never_seen_and_what_counts_stays_the_same(name: str, conditional: bool, progress: float) -> None:
    course = find("courses", name)()
    spec, objective = family("masked", conditional, shift=1)
    clean = batch(conditional)
    changed = replace(clean, ids=torch.where(clean.valid, clean.ids, A))
    answers = []
    for rows in (clean, changed):
        made = course.prepare(objective, rows, spec, progress, torch.Generator().manual_seed(3))
        with torch.no_grad():
            answers.append(network()(made.ask))
        assert made.tokens == int(rows.target.sum())
        assert bool(made.ask.x[~rows.target].ne(spec.mask_id).all()), "a prompt was corrupted"
        assert bool(objective.loss(torch.zeros(len(made.target), spec.vocab_size), made).loss.isfinite())
    assert torch.equal(*answers)


def request(rows: int = 40, width: int = 24) -> Forward:
    pos = torch.arange(width).expand(rows, width)
    return Forward(x=pos, pos=pos, want=pos, attend=Attend("full"))


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_anneal_shows_the_stated_share_of_what_follows(share: float) -> None:
    ask = request()
    mask = sight(ask, share, torch.Generator().manual_seed(0))
    ahead = torch.ones(24, 24).triu(1).bool()
    assert bool(mask[:, ~ahead].all())
    seen, count = float(mask[:, ahead].float().mean()), 40 * int(ahead.sum())
    assert abs(seen - share) <= 4 * math.sqrt(share * (1 - share) / count)


def test_anneal_shows_no_more_than_the_family_does() -> None:
    ask = replace(request(), attend=Attend("block", 4))
    mask = sight(ask, 0.9, torch.Generator().manual_seed(0))
    stage = torch.arange(24) // 4
    assert not bool(mask[:, stage[:, None] < stage].any())


def test_blocks_double_then_all_is_one_then_they_halve() -> None:
    course = Blocks(grow=0.5, shrink=0.2)
    grown = [course.attend(Attend("block", 4), 16, p / 100) for p in range(100)]
    sizes = [one.block for one in grown if one.kind == "block"]
    assert sizes[:50] == sorted(sizes[:50]) and set(sizes[:50]) == {1, 2, 4, 8}
    assert all(one.kind == "full" for one in grown[50:80])
    assert sizes[50:] == sorted(sizes[50:], reverse=True) and set(sizes[50:]) == {4, 8}
    assert course.attend(Attend("block", 4), 16, 1.0) == Attend("block", 4)
    assert course.attend(Attend("full"), 16, 0.9) == Attend("full")


def test_blocks_of_one_token_train_a_block_model_by_the_chain_rule() -> None:
    """At first a block model's loss under the course is the autoregressive one, given the same conditionals."""
    spec, objective = family("block", conditional=False)
    rows = batch(False)
    made = Blocks().prepare(objective, rows, spec, 0.0, torch.Generator().manual_seed(0))
    exact = Autoregressive().prepare(rows, family("autoregressive", False)[0], torch.Generator())
    assert torch.equal(made.target, exact.target)
    logits = torch.randn(len(made.target), spec.vocab_size, generator=torch.Generator().manual_seed(0))
    theirs = Autoregressive().loss(logits.clone(), exact).nats
    logits[:, spec.mask_id] = -torch.inf
    torch.testing.assert_close(objective.loss(logits, made).nats, theirs)


def test_anneal_has_no_second_stream() -> None:
    spec, objective = family("block")
    with pytest.raises(UserError, match="clean text"):
        Anneal().prepare(objective, batch(True), spec, 0.0, torch.Generator())


@pytest.mark.parametrize(
    "table, says",
    [
        ({"until": 0.5}, "needs a name"),
        ({"name": "aneal"}, "Did you mean 'anneal'"),
        ({"name": "anneal", "untill": 0.5}, "Did you mean 'until'"),
        ({"name": "anneal", "until": 2.0}, "between 0 and 1"),
        ({"name": "blocks", "grow": 0.7, "shrink": 0.6}, "more than all"),
    ],
)
def test_mistakes_are_said(table: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        build_course(table)
    assert build_course({}) is None
