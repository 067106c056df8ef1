"""Plans of servers: near what the parts take, the largest batch, and refusal with a remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import redraft
from redraft.errors import UserError
from redraft.planning.machine import MACHINES
from redraft.planning.serving import ServerPlan, require, serving

CPU = torch.device("cpu")
NAME = "translate-en-de-autoregressive"


@pytest.fixture(scope="module")
def plan() -> ServerPlan:
    return serving({NAME: NAME}, CPU, "float32", rows=4)


def test_weights_and_cache_are_those_of_the_model(plan: ServerPlan) -> None:
    [found], network = plan.models, redraft.load(NAME, "cpu").network
    assert found.weights == 4 * network.parameter_count
    store = network.store(4, network.config.max_length)
    assert 4 * found.cache_row == sum(pair.nbytes for pair in store.pairs)
    form = redraft.load(NAME, "cpu").inference_network()
    assert (found.copies > 0) == (form is not network), "the form that is fast on a CPU copies the weights"


def test_half_the_bits_take_half_the_memory(plan: ServerPlan) -> None:
    half = serving({NAME: NAME}, CPU, "bfloat16", rows=4).models[0]
    assert (2 * half.weights, 2 * half.cache_row) == (plan.models[0].weights, plan.models[0].cache_row)


def test_the_largest_batch_fits_and_a_larger_one_does_not(plan: ServerPlan) -> None:
    small = replace(plan, process=0)  # that of the tests is larger than the model
    room = replace(small, available=small.at(10))
    most = room.largest_batch
    assert most > 0 and room.at(most) <= 0.95 * small.at(10) < room.at(most + 1)


def test_a_cache_that_fills_up_slowly_is_not_needed_at_the_start(plan: ServerPlan) -> None:
    assert plan.lazy and plan.needed == plan.at(1)
    require(replace(plan, available=2 * plan.at(1), rows=10_000))
    on_gpu = serving({NAME: NAME}, CPU, "bfloat16", 10_000, machine=replace(MACHINES["h100"], memory=1e9))
    assert not on_gpu.lazy and on_gpu.process == 0
    with pytest.raises(UserError, match=rf"--batch {on_gpu.largest_batch}"):
        require(on_gpu)


def test_models_add_up_and_too_many_are_refused(plan: ServerPlan) -> None:
    two = serving({"a": NAME, "b": NAME}, CPU, "float32", rows=4)
    assert two.at(3) - two.process == 2 * (plan.at(3) - plan.process)
    with pytest.raises(UserError, match=r"needs .* 1 MB are available\. Use 16 bits .*, or serve fewer models"):
        require(replace(two, available=1 << 20))
