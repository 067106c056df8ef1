"""Likelihood under a sampler, of long documents, and of options, compared with enumeration and sums."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from redraft import likelihood, registry
from redraft.canvas import make_canvas
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.generation.loop import Loop, Method
from redraft.model import Model
from redraft.presets import preset
from redraft.samplers.base import Sampler
from redraft.types import Batch
from tests import tiny

PLAIN, _ = tiny.family("masked", paired=False)
ALLOWED = [1, 5, 6, 7]  # an end-of-text and three letters


def make(name: str, **options: Any) -> Sampler:
    return registry.find("samplers", name)(**options)


def texts(length: int) -> Batch:
    """Every text of a length, including those with end-of-text at any position."""
    ids = torch.cartesian_prod(*[torch.tensor(ALLOWED)] * length).view(-1, length)
    everything = torch.ones_like(ids, dtype=torch.bool)
    return Batch(ids, everything, everything, None, torch.full((len(ids),), length))


RULES = [
    pytest.param(make("confidence", steps=3, order=order), id=order) for order in ("peak", "margin", "entropy", "left")
] + [
    pytest.param(make("confidence", steps=2, order="margin"), id="two-at-a-time"),
    pytest.param(make("confidence", steps=3, order="entropy", block=2), id="blocks"),
    pytest.param(make("entropy_bound", gamma=0.7), id="entropy-bound"),
    pytest.param(make("prophet", steps=3, order="margin", early=1.0, middle=0.7), id="prophet"),
]


@pytest.mark.parametrize("sampler", RULES)
def test_probabilities_under_a_sampler_sum_to_one(sampler: Sampler) -> None:
    """The network's conditionals match no joint distribution, but the sampler's texts have one."""
    network = tiny.ArbitraryNetwork(PLAIN, length=3, seed=4)
    found = likelihood.sampler_likelihood(network, [texts(3)], sampler, PLAIN)
    assert not found.is_bound and found.stderr == 0
    assert math.fsum(math.exp(-nats) for nats in found.rows) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("sampler", RULES)
def test_a_sampler_generates_texts_at_their_probabilities(sampler: Sampler) -> None:
    """The same sampler, at temperature 1."""
    network, count = tiny.ArbitraryNetwork(PLAIN, length=3, seed=2), 6000
    network.logits[..., PLAIN.tokens.eos_id] = -torch.inf  # an early end would leave the rest unsampled
    canvas = make_canvas([[None] * 3] * count, [0] * count, PLAIN, seeds=list(range(count)), temperature=1.0)
    for _ in Loop({"main": network}, Method(sampler), PLAIN).run(canvas):
        pass
    drawn = Counter(map(tuple, canvas.ids.tolist()))
    every = texts(3)
    keep = (every.ids != PLAIN.tokens.eos_id).all(1)
    nats = torch.tensor(likelihood.sampler_likelihood(network, [every], sampler, PLAIN).rows, dtype=torch.float64)[keep]
    p = (-nats).exp()
    observed = [drawn[tuple(text)] for text in every.ids[keep].tolist()]
    assert sum(observed) == count
    assert chisquare(observed, (p / p.sum() * count).tolist()).pvalue > 1e-3


def chain_rule(network: tiny.ArbitraryNetwork, text: list[int], order: tuple[int, ...]) -> float:
    """-log p of a text, position by position."""
    x, nats = torch.full((1, len(text)), PLAIN.tokens.mask_id), 0.0
    for place in order:
        nats -= float(tiny.log_probabilities(network, PLAIN, x)[0, place, text[place]])
        x[0, place] = text[place]
    return nats


@pytest.mark.parametrize("sampler", [make("first_hitting"), make("confidence", steps=3, order="random")])
def test_random_orders_bound_their_mixture(sampler: Sampler) -> None:
    network = tiny.ArbitraryNetwork(PLAIN, length=3, seed=1)
    text = [5, 7, 1]
    each = torch.tensor([chain_rule(network, text, order) for order in itertools.permutations(range(3))])
    batch = likelihood.one_row([], text)
    found = likelihood.sampler_likelihood(network, [batch], sampler, PLAIN, orders=600, seed=7)
    assert found.is_bound and found.samples == 600
    assert abs(found.nats - float(each.double().mean())) < 4 * found.stderr
    assert found.stderr == pytest.approx(float(each.double().std(correction=0)) / math.sqrt(600), rel=0.15)
    p = (-each.double()).exp()
    deviation = float(p.std(correction=0) / p.mean()) / math.sqrt(600)
    assert abs(found.mixture[0] + float(p.mean().log())) < 4 * deviation
    assert found.mixture[0] < found.nats - 1


def test_orders_differ_between_rows_and_samples() -> None:
    network = tiny.ArbitraryNetwork(PLAIN, length=3, seed=1)
    ids = torch.tensor([[5, 7, 6]] * 12)
    every = torch.ones_like(ids, dtype=torch.bool)
    batch = Batch(ids, every, every, None, torch.zeros(12))
    found = [
        likelihood.sampler_likelihood(network, [batch], make("first_hitting"), PLAIN, 1, seed).rows for seed in (0, 100)
    ]
    assert len(set(found[0])) > 2
    assert found[0] != found[1]


@pytest.mark.parametrize("sampler", [make("first_hitting"), *[rule.values[0] for rule in RULES[:4]]])
def test_an_oracles_likelihood_is_that_of_its_language(sampler: Sampler) -> None:
    """With prompts, predicted lengths and final end-of-text tokens."""
    language = tiny.Language.ended([5, 6, 7], 3, seed=5)
    spec, _ = tiny.family("masked")
    network = tiny.OracleNetwork(language, spec, start=2)
    batch = tiny.pairs([([6, 4], text) for text in language.texts])
    found = likelihood.sampler_likelihood(network, [batch], sampler, spec, orders=3)
    expected = [language.nll(text) for text in language.texts]
    assert found.rows == pytest.approx(expected, abs=1e-4)
    assert found.mixture == pytest.approx(expected, abs=1e-4)
    assert found.tokens == sum(map(len, language.texts))


@pytest.mark.parametrize("name", ["confidence", "threshold", "mask_predict", "remdm", "factor"])
def test_samplers_that_depend_on_sampled_tokens_have_no_likelihood(name: str) -> None:
    with pytest.raises(UserError, match="sampled tokens"):
        likelihood.sampler_likelihood(tiny.ArbitraryNetwork(PLAIN, 3), [texts(3)], make(name), PLAIN)


def plain_model(family: str, length: int = 16) -> Model:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size, max_length=length)
    model = Model.fresh({"name": family}, tokenizer, shape, False, seed=3)
    for parameter in model.network.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return model


@pytest.mark.parametrize("stride", [1, 5, 8, 15])
def test_rolling_counts_every_token_once_with_its_context(stride: int) -> None:
    model = plain_model("autoregressive")
    text = "a text that is longer than the context of the model"
    found = model.rolling(text, stride)
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    expected = 0.0
    for begin in range(1, len(ids), stride):
        first = max(0, begin + stride - 16)
        window = torch.tensor([ids[first : begin + stride]])
        logits = model.logits(window).clone()
        logits[..., list(model.spec.tokens.forbidden)] = -torch.inf
        log_p = logits.log_softmax(-1)
        for place in range(begin, min(begin + stride, len(ids))):
            expected -= float(log_p[0, place - first - 1, ids[place]])
    assert found.nats == pytest.approx(expected, abs=1e-3)
    assert found.tokens == found.bytes == len(text)
    assert not found.is_bound


def test_rolling_a_short_text_is_its_score() -> None:
    model = plain_model("autoregressive", 64)
    assert model.rolling("short", 63).nats == pytest.approx(model.score("", "short").nats, abs=1e-4)
    masked = plain_model("masked", 64)
    bound, score = masked.rolling("short", 63, samples=600), masked.score("", "short", samples=600)
    assert bound.is_bound
    assert abs(bound.nats - score.nats) < 5 * (bound.stderr + score.stderr)


@pytest.mark.parametrize("stride", [-1, 16, 99])
def test_invalid_strides_are_refused(stride: int) -> None:
    with pytest.raises(UserError, match="stride"):
        plain_model("masked").rolling("some text that is long enough", stride)


def test_documents_need_a_model_of_documents() -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True)
    with pytest.raises(UserError, match="prompts"):
        model.rolling("text")


@pytest.mark.parametrize("family", ["autoregressive", "masked"])
def test_ranking_is_by_score(family: str) -> None:
    model = plain_model(family, 64)
    options = ["yes", "perhaps not", "né"]
    by = {option: model.score("is it?", option) for option in options}
    for measure, unit in (("sum", lambda b: 1), ("token", lambda b: b.tokens), ("byte", lambda b: b.bytes)):
        ranked = model.rank("is it?", options, by=measure)
        expected = sorted(options, key=lambda option: by[option].nats / unit(by[option]))
        assert [one.option for one in ranked] == expected
        assert ranked[0].score == pytest.approx(-by[expected[0]].nats / unit(by[expected[0]]))
        assert (ranked[0].stderr > 0) == (family == "masked")


def test_ranking_under_a_sampler_is_exact() -> None:
    model = plain_model("masked", 64)
    ranked = model.rank("is it?", ["yes", "no"], sampler="confidence", sampler_options={"order": "margin"})
    assert all(one.stderr == 0 for one in ranked)
    scores = {
        o: model.score("is it?", o, sampler="confidence", options={"order": "margin"}).nats for o in ("yes", "no")
    }
    assert [one.option for one in ranked] == sorted(scores, key=scores.__getitem__)


@pytest.mark.parametrize(
    ("options", "by", "word"), [(["a"], "sum", "two"), (["a", ""], "sum", "empty"), (["a", "b"], "tokens", "token")]
)
def test_ranking_without_a_choice_is_refused(options: list[str], by: str, word: str) -> None:
    with pytest.raises(UserError, match=word):
        plain_model("masked", 64).rank("is it?", options, by=by)
