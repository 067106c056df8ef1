"""Logits in parts: the same losses, gradients and predictions as from logits [N, V] that exist as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from redraft import registry
from redraft.data.examples import Example
from redraft.data.loader import batches
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.families import build_family
from redraft.likelihood import prepare_batch
from redraft.model import Model
from redraft.models.bert import Bert
from redraft.models.bert import Config as BertConfig
from redraft.models.dit import Config as DitConfig
from redraft.models.dit import Dit
from redraft.models.gpt import Config as GptConfig
from redraft.models.gpt import Gpt
from redraft.models.parts.backbone import Backbone
from redraft.objectives.base import Objective
from redraft.objectives.shared import vocabulary
from redraft.presets import preset, shape
from redraft.types import AttentionPattern, Batch, Forward, LossTerms, Prepared
from tests.tiny import described, families

THREE = 3  # target positions of a part

# Every objective that a family can have, beside those of the families' defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "complementary": {"name": "masked", "weight": "uniform", "complementary": True},
    "joint": {"name": "masked", "shift": 1, "autoregressive": 0.5},
    "self-conditioned": {"name": "masked", "self_condition": 0.7},
    "smoothed": {"name": "autoregressive", "label_smoothing": 0.1},
    "timed": {"name": "masked", "timed": True},
}
WHOLE_LOGITS = {"embedding", "latent"}  # their losses are not sums over target positions of a token network


def table(name: str) -> dict[str, Any]:
    return OPTIONS.get(name) or described(name)


def batch(tokenizer: Tokenizer) -> Batch:
    rows = [("ab", "cdefgh"), ("c", "ddef"), ("hello", "w"), ("x", "yz")]
    examples = [Example(target, prompt, where=f"row {number}") for number, (prompt, target) in enumerate(rows)]
    return batches(tokenise(examples, tokenizer), tokenizer, 32, 4096, "error")[0]


def made(name: str) -> Model:
    found = Model.fresh(table(name), Tokenizer.bytes(), preset("toy", 261, dim=16, layers=2, max_length=64), True, 3)
    torch.manual_seed(1)
    for parameter in found.network.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    return found


def prepared_of(model: Model, objective: Objective[Any], network: Any = None) -> Prepared:
    networks = {"main": model.network if network is None else network, "teacher": model.network}
    generator = torch.Generator().manual_seed(7)
    return prepare_batch(objective, batch(model.tokenizer), model.spec, generator, networks)[0]


def gradients(network: Backbone, objective: Objective[Any], prepared: Prepared) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    loss = vocabulary.backward(network.train(), objective, prepared, 0.5)
    return loss, {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that turns parts of ``THREE`` target positions on, for a network."""

    def turn_on(network: Backbone) -> None:
        monkeypatch.setattr(vocabulary, "WHOLE", 0)
        monkeypatch.setattr(vocabulary, "PART", THREE * network.logit_width)

    return turn_on


FRESH = [name for name in families() if not registry.find("families", described(name)["name"]).needs_target]


@pytest.mark.parametrize("name", [*FRESH, *OPTIONS])
def test_losses_and_gradients_are_those_of_whole_logits(name: str, in_parts: Any) -> None:
    model = made(name)
    objective = model.family.objective()
    assert objective.additive and objective.scoring().additive
    before = prepared_of(model, objective)
    whole = objective.loss(model.network(before.request), before)
    loss, expected = gradients(model.network, objective, before)
    in_parts(model.network)
    ranges = vocabulary.parts(model.network, before.request)
    assert len(ranges) > 2 and ranges[-1].stop == len(before.target)
    after = prepared_of(model, objective)  # its rollouts, too, are in parts
    torch.testing.assert_close(after.request.tokens, before.request.tokens)
    found = vocabulary.evaluate(model.network, objective, after)
    assert_same(found, whole)
    part_loss, grads = gradients(model.network, objective, after)
    torch.testing.assert_close(part_loss, loss, rtol=1e-5, atol=1e-6)
    assert grads.keys() == expected.keys()
    for parameter, gradient in expected.items():
        torch.testing.assert_close(grads[parameter], gradient, rtol=1e-4, atol=1e-6, msg=parameter)


def assert_same(found: LossTerms, expected: LossTerms) -> None:
    torch.testing.assert_close(found.loss, expected.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.nats, expected.nats, rtol=1e-5, atol=1e-5)
    assert (found.tokens, found.is_bound) == (expected.tokens, expected.is_bound)


def test_no_logits_of_all_targets_ever_exist(in_parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = made("autoregressive")
    objective = model.family.objective()
    prepared = prepared_of(model, objective)
    in_parts(model.network)
    rows: list[int] = []
    project = type(model.network).project

    def counted(self: Any, states: Tensor, request: Forward, part: slice) -> Tensor:
        rows.append(len(states))
        return project(self, states, request, part)

    monkeypatch.setattr(type(model.network), "project", counted)
    gradients(model.network, objective, prepared)
    vocabulary.evaluate(model.network, objective, prepared)
    assert max(rows) == THREE and sum(rows) == 2 * len(prepared.target)


def test_in_bfloat16_the_gradient_is_close_and_stays_float32(in_parts: Any) -> None:
    model = made("masked")
    objective = model.family.objective()
    prepared = prepared_of(model, objective)
    _, expected = gradients(model.network, objective, prepared)
    in_parts(model.network)
    model.network.zero_grad()
    vocabulary.backward(model.network, objective, prepared, 0.5, bfloat16=True)
    for name, parameter in model.network.named_parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            scale = expected[name].abs().max().clamp(min=1e-6)
            assert float((parameter.grad - expected[name]).abs().max() / scale) < 0.1, name


def test_small_vocabularies_are_projected_at_once() -> None:
    model = made("masked")
    prepared = prepared_of(model, model.family.objective())
    assert vocabulary.parts(model.network, prepared.request) == [slice(0, len(prepared.target))]


def test_objectives_that_need_all_logits_say_so() -> None:
    not_additive = {n for n in registry.names("families") if not build_family({"name": n})[1].objective().additive}
    assert not_additive == WHOLE_LOGITS


@pytest.mark.parametrize("score", ["none", "absorbing", "uniform"])
def test_every_network_projects_row_by_row(score: str) -> None:
    torch.manual_seed(0)
    networks: list[Backbone] = [
        Dit(replace(DitConfig(vocab_size=40, dim=16, layers=1, heads=2), score=score, noise="linear")),
        Bert(BertConfig(vocab_size=40, dim=16, layers=1, heads=2, max_length=16)),
        Gpt(GptConfig(vocab_size=40, dim=16, layers=1, heads=2, max_length=16)),
        registry.find("models", "cross_attention")(shape("toy", 40, "cross_attention")),
    ]
    ids = torch.randint(5, 40, (2, 8))
    pos = torch.arange(8).expand(2, 8)
    request = Forward(ids, pos, torch.where(pos > 2, pos, -1), AttentionPattern(), time=torch.tensor([0.3, 0.8]))
    for network in networks:
        network.eval()
        with torch.no_grad():
            whole, states = network(request), network.states(request)
            halves = [network.project(states[part], request, part) for part in (slice(0, 3), slice(3, 10))]
        torch.testing.assert_close(torch.cat(halves), whole)
        assert whole.shape[1] == network.logit_width
