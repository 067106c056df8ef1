"""Laws of CPU forms of networks: the same function up to rounding, for every request and with every store."""

from __future__ import annotations

import pytest
import torch

from redraft.caches.exact import Exact
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.models.cpu.layers import flatten_padded, unflatten
from redraft.models.cpu.native import library
from redraft.models.cpu.transformer import CpuTransformer
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.settings import Weights
from redraft.types import AttentionPattern, CacheHint, Drawing, Request
from tests.tiny import cached

SHAPES = [
    pytest.param({}, id="default"),
    pytest.param({"heads": 4, "kv_heads": 2, "qk_norm": True, "tied": False}, id="grouped-qknorm-untied"),
    pytest.param({"shift": 1, "restart": False}, id="shifted"),
    pytest.param({"qkv_bias": True, "head_dim": 24}, id="biased-wide"),
    pytest.param({"window": 4, "distant": (1,)}, id="windowed"),
]
PATTERNS = [AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 3)]


@pytest.fixture(params=[False, True], ids=["torch", "compiled"])
def compiled(request: pytest.FixtureRequest) -> bool:
    """Operations of torch, and compiled code for shapes that it supports."""
    if request.param and library().found is None:
        pytest.skip(f"Layers were not compiled: {library().reason}.")
    return bool(request.param)


def network(**changes: object) -> Transformer:
    """Random weights far from their initial values, including the gains of norms."""
    torch.manual_seed(0)
    made = Transformer(preset("toy", 40, **changes)).requires_grad_(False).eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.mul_(4)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def make_request(net: Transformer, attend: AttentionPattern, isolate: bool) -> Request:
    x = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    pos = torch.arange(12).repeat(3, 1)
    pos[1, 9:] = -1
    targets = torch.where((pos >= net.config.shift) & (torch.rand(pos.shape) < 0.6), pos, -1)
    prompt = torch.tensor([3, 4, 5]) if isolate else None
    return Request(
        tokens=x,
        positions=pos,
        targets=targets,
        attention=attend,
        prompt=prompt,
        drawing=Drawing(torch.arange(3)),
        cache=CacheHint(kv_slot=torch.arange(3)),
    )


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("attend", PATTERNS, ids=lambda attend: attend.kind)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_cpu_form_equals_the_network(
    compiled: bool, shape: dict[str, object], attend: AttentionPattern, isolate: bool
) -> None:
    net = network(**shape)
    cpu_form, request = CpuTransformer(net, compiled=compiled), make_request(net, attend, isolate)
    torch.testing.assert_close(cpu_form(request), net(request), rtol=1e-4, atol=1e-5)
    own, store = cpu_form.store(3, 12), net.store(3, 12)
    narrow = Exact().narrow(request, own.tokens, net.config.shift)
    torch.testing.assert_close(cached(cpu_form, narrow, own), cached(net, narrow, store), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_position_at_a_time_equals_the_network(compiled: bool, shape: dict[str, object], weights: Weights) -> None:
    """Requests of autoregressive decoding at batch 1. The error of rounded weights is small relative to the standard
    deviation of the logits."""
    net = network(**shape)
    cpu_form, shift = CpuTransformer(net, weights, compiled), net.config.shift
    x = torch.randint(5, 40, (1, 12), generator=torch.Generator().manual_seed(2))
    own, store = cpu_form.store(1, 12), net.store(1, 12)
    for end in range(1, 13 - shift):
        begin = 0 if end == 1 else end - 1
        request = Request(
            tokens=x[:, begin:end],
            positions=torch.arange(begin, end)[None],
            targets=torch.tensor([[end - 1 + shift]]),
            attention=AttentionPattern("causal"),
            drawing=Drawing(torch.tensor([0])),
            cache=CacheHint(kv_slot=torch.tensor([0]), visible_below=torch.tensor([begin])),
        )
        mine, theirs = cached(cpu_form, request, own), cached(net, request, store)
        if weights != "float32":
            assert (mine - theirs).abs().max() < 0.15 * theirs.std()
            assert not torch.equal(mine, theirs)
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_network_without_cpu_form_is_rejected() -> None:
    timed = Transformer(preset("toy", 40, timed=True)).eval()
    assert not CpuTransformer.fits(timed) and not CpuTransformer.fits(network().double())
    with pytest.raises(ValueError, match="time conditioning"):
        CpuTransformer(timed)


def model() -> Model:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size)
    made = Model.fresh({"name": "autoregressive"}, tokenizer, shape, paired=True)
    made.network.requires_grad_(False)
    return made


def test_a_changed_model_generates_with_its_new_weights() -> None:
    """The weights of the CPU form are copied again after an update in place."""
    made = model()
    before = made.generate("abc", max_new_tokens=12)[0].ids
    with torch.no_grad():
        made.network.embedding.weight.copy_(made.network.embedding.weight.roll(1, 0))
    after = made.generate("abc", max_new_tokens=12)[0].ids
    assert after == model_with(made.network).generate("abc", max_new_tokens=12)[0].ids
    assert before != after


def model_with(network: Transformer) -> Model:
    fresh = model()
    fresh.network.load_state_dict(network.state_dict())
    return fresh


def test_int8_weights_need_a_network_with_a_cpu_form() -> None:
    made = model()
    assert made.generate("abc", max_new_tokens=3, weights="int8")[0].ids
    made.network.double()
    with pytest.raises(UserError, match="int8.*float32 model on a CPU"):
        made.generate("abc", max_new_tokens=3, weights="int8")
    with pytest.raises(UserError, match="weights"):
        made.generate("abc", weights="int4")


def test_matrices_have_few_heights_and_keep_their_rows() -> None:
    heights = {count: len(flatten_padded(torch.zeros(count, 1))) for count in range(4097)}
    assert all(count <= height <= count * 9 / 8 for count, height in heights.items())
    assert len(set(heights.values())) <= 8 * 10 + 1  # oneDNN builds and keeps a kernel for each
    x = torch.randn(3, 7, 2)
    assert torch.equal(unflatten(flatten_padded(x), x.shape[:-1]), x)
