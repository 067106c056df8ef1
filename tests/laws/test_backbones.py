"""Laws of every network: padding, causal attention, exact caches, and saving of weights."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft import models, registry, weights
from redraft.caches.exact import Exact
from redraft.models.parts.backbone import Backbone
from redraft.models.parts.moe import Experts
from redraft.types import AttentionPattern, CacheHint, Drawing, Request
from tests.tiny import cached

SHAPES: dict[str, list[dict[str, Any]]] = {
    "transformer": [
        {"heads": 4, "kv_heads": 2, "head_dim": 6, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": False},
        {"heads": 2, "rotary_dim": 4, "experts": Experts(8, 2, 12, shared=6, dense=(0,), score="sigmoid", bias=True)},
        {"heads": 2, "experts": Experts(8, 3, 12, score="sigmoid", groups=4, top_groups=2, normalise=True, scale=2.5)},
    ],
    "gpt": [{"heads": 2}, {"heads": 2, "tied": False, "qkv_bias": False, "shift": 0}],
    "dit": [
        {"heads": 2, "condition_dim": 8, "noise": "linear"},
        {"heads": 2, "noise": "geometric", "score": "uniform"},
    ],
    "bert": [{"heads": 2}],
    "cross_attention": [{"heads": 2}, {"heads": 2, "kv_heads": 1, "qk_norm": True, "tied": False}],
    "embedding_transformer": [{"heads": 2, "width": 8}],
    "latent_transformer": [{"heads": 2, "width": 8, "auto_dim": 16, "window": 8}],
    "diffusion_gemma": [
        {"heads": 4, "kv_heads": 2, "head_dim": 6, "distant_kv_heads": 1, "distant_head_dim": 8, "mlp_dim": 20}
        | {
            "distant": (1,),
            "window": 4,
            "experts": Experts(4, 2, 12, normalise=True, activation="gelu_tanh", scaled=True),
        }
    ],
    "modern_bert": [{"heads": 2, "layers": 3, "distant": (0,), "window": 4, "mlp_dim": 20}],
}
CASES = [
    pytest.param(name, shape, id=f"{name}-{number}") for name in SHAPES for number, shape in enumerate(SHAPES[name])
]


def make(name: str, shape: dict[str, Any]) -> Backbone:
    """Random weights far from their initial values, in float64."""
    kind = registry.find("models", name)
    base = {"vocab_size": 40, "dim": 24, "layers": 2, "max_length": 64}
    torch.manual_seed(0)
    net: Backbone = kind(sys.modules[kind.__module__].Config(**{**base, **shape})).double().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return net


def make_request(net: Backbone, x: torch.Tensor, attend: AttentionPattern, lengths: list[int]) -> Request:
    columns = torch.arange(x.shape[1])
    pos = torch.where(columns < torch.tensor(lengths)[:, None], columns, -1)
    targets = torch.where(pos >= net.config.shift, pos, -1)
    t = torch.linspace(0.2, 0.9, len(x)) if net.config.timed else None
    return Request(
        tokens=x,
        positions=pos,
        targets=targets,
        attention=attend,
        time=t,
        drawing=Drawing(torch.arange(len(x))),
        cache=CacheHint(kv_slot=torch.arange(len(x))),
    )


def test_every_network_is_tested() -> None:
    assert {*SHAPES, "drafter"} == set(registry.names("models")), "a drafter has laws of its own (test_drafter)"


@pytest.mark.parametrize(
    "attend", [AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 3)], ids=lambda a: a.kind
)
@pytest.mark.parametrize(("name", "shape"), CASES)
def test_padding_changes_nothing(name: str, shape: dict[str, Any], attend: AttentionPattern) -> None:
    net = make(name, shape)
    x = torch.randint(5, 40, (2, 10))
    both = net(make_request(net, x, attend, [6, 10]))
    one = make_request(net, x[:1, :6], attend, [6])
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both[: int((one.targets >= 0).sum())], net(one), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_causal_attention_does_not_depend_on_later_positions(name: str, shape: dict[str, Any]) -> None:
    net = make(name, shape)
    x = torch.randint(5, 40, (1, 10))
    changed = x.clone()
    changed[0, 6:] = (x[0, 6:] + 3) % 35 + 5
    before, after = (net(make_request(net, ids, AttentionPattern("causal"), [10])) for ids in (x, changed))
    torch.testing.assert_close(before[: 6 - net.config.shift], after[: 6 - net.config.shift], rtol=1e-9, atol=1e-9)
    assert not torch.allclose(before[7:], after[7:])


@pytest.mark.parametrize("attend", [AttentionPattern("causal"), AttentionPattern("block", 3)], ids=lambda a: a.kind)
@pytest.mark.parametrize(("name", "shape"), [case for case in CASES if not case.values[1].get("noise")])
def test_a_cache_changes_nothing(name: str, shape: dict[str, Any], attend: AttentionPattern) -> None:
    net = make(name, shape)
    store, policy, reused = net.store(2, 14), Exact(), False
    x = torch.randint(5, 40, (2, 14))
    for length in (7, 9, 14):
        whole = make_request(net, x[:, :length], attend, [length, length - 1])
        whole.targets = torch.where(whole.targets >= length - 3, whole.targets, -1)
        narrow = policy.narrow(whole, store.tokens[[0, 1]], net.config.shift)
        reused |= narrow.tokens.shape[1] < length
        torch.testing.assert_close(cached(net, narrow, store), net(whole), rtol=1e-9, atol=1e-9)
        store.record(narrow)
    assert reused


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_a_network_rebuilt_from_description_and_weights_is_the_same(
    name: str, shape: dict[str, Any], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    net = make(name, shape)
    save_file({key: value.contiguous() for key, value in net.named_parameters()}, str(tmp_path / "model.safetensors"))
    again = models.empty(models.describe(net), "test")
    models.allocate(again, torch.float64, torch.device("cpu"))
    weights.fill(again, weights.Files(tmp_path), weights.Layout.own(again))
    x = torch.randint(5, 40, (1, 8))
    request = make_request(net, x, AttentionPattern("full"), [8])
    torch.testing.assert_close(again(request), net(request), rtol=0, atol=0)


def test_a_mixture_of_experts_follows_its_definition() -> None:
    """Computed token by token: experts are chosen by biased scores and weighted by scores; the shared one is added."""
    from redraft.models.parts.moe import MixtureOfExperts

    torch.manual_seed(0)
    experts = Experts(6, 2, 4, shared=5, score="sigmoid", bias=True, normalise=True, scale=2.5, groups=3, top_groups=1)
    mixture = MixtureOfExperts(8, experts).double()
    assert mixture.balance is not None and mixture.shared is not None
    mixture.balance.data.normal_()
    x = torch.randn(1, 7, 8, dtype=torch.float64)
    for token, found in zip(x[0], mixture(x)[0], strict=True):
        score = (mixture.router.weight @ token).sigmoid()
        rank = score + mixture.balance
        group = int(rank.view(3, 2).sum(1).argmax())  # with two experts per group, both are its best two
        chosen = [2 * group, 2 * group + 1]
        total = mixture.shared(token)
        for e in chosen:
            gate, up = (mixture.experts_gate_up[e] @ token).chunk(2)
            y = mixture.experts_down[e] @ (torch.nn.functional.silu(gate) * up)
            total = total + 2.5 * (score[e] / score[chosen].sum()) * y
        torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-9)
