"""Laws of the lean form of a network: the same function up to rounding, in every request and with every store."""

from __future__ import annotations

import pytest
import torch

from redraft.caches.exact import Exact
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.models._lean import Lean, Weights, level, unlevel
from redraft.models.transformer import Transformer
from redraft.presets import preset
from redraft.types import Attend, Forward

SHAPES = [
    pytest.param({}, id="default"),
    pytest.param({"heads": 4, "kv_heads": 2, "qk_norm": True, "tied": False}, id="grouped-qknorm-untied"),
    pytest.param({"shift": 1, "restart": False}, id="shifted"),
    pytest.param({"qkv_bias": True, "head_dim": 24}, id="biased-wide"),
    pytest.param({"window": 4, "distant": (1,)}, id="windowed"),
]
SIGHTS = [Attend("full"), Attend("causal"), Attend("block", 3)]


def network(**changes: object) -> Transformer:
    """Random weights far from their initial ones, gains and all."""
    torch.manual_seed(0)
    made = Transformer(preset("toy", 40, **changes)).requires_grad_(False).eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.mul_(4)
        else:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made


def request(net: Transformer, attend: Attend, isolate: bool) -> Forward:
    x = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(1))
    pos = torch.arange(12).repeat(3, 1)
    pos[1, 9:] = -1
    want = torch.where((pos >= net.config.shift) & (torch.rand(pos.shape) < 0.6), pos, -1)
    prompt = torch.tensor([3, 4, 5]) if isolate else None
    return Forward(x=x, pos=pos, want=want, attend=attend, prompt=prompt, slot=torch.arange(3))


@pytest.mark.parametrize("isolate", [False, True])
@pytest.mark.parametrize("attend", SIGHTS, ids=lambda attend: attend.kind)
@pytest.mark.parametrize("shape", SHAPES)
def test_lean_equals_the_network(shape: dict[str, object], attend: Attend, isolate: bool) -> None:
    net = network(**shape)
    lean, ask = Lean(net), request(net, attend, isolate)
    torch.testing.assert_close(lean(ask), net(ask), rtol=1e-4, atol=1e-5)
    own, store = lean.store(3, 12), net.store(3, 12)
    narrow = Exact().narrow(ask, own.tokens, net.config.shift)
    torch.testing.assert_close(lean(narrow, own), net(narrow, store), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_position_at_a_time_equals_the_network(shape: dict[str, object], weights: Weights) -> None:
    """As autoregressive decoding at batch 1 asks. Weights that round err by a small part of the logits' spread."""
    net = network(**shape)
    lean, shift = Lean(net, weights), net.config.shift
    x = torch.randint(5, 40, (1, 12), generator=torch.Generator().manual_seed(2))
    own, store = lean.store(1, 12), net.store(1, 12)
    for end in range(1, 13 - shift):
        begin = 0 if end == 1 else end - 1
        ask = Forward(
            x=x[:, begin:end],
            pos=torch.arange(begin, end)[None],
            want=torch.tensor([[end - 1 + shift]]),
            attend=Attend("causal"),
            slot=torch.tensor([0]),
            read=torch.tensor([begin]),
        )
        mine, theirs = lean(ask, own), net(ask, store)
        if weights != "float32":
            assert (mine - theirs).abs().max() < 0.15 * theirs.std()
            assert not torch.equal(mine, theirs)
        else:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_network_that_has_no_lean_form_is_refused() -> None:
    timed = Transformer(preset("toy", 40, timed=True)).eval()
    assert not Lean.fits(timed) and not Lean.fits(network().double())
    with pytest.raises(ValueError, match="not told the time"):
        Lean(timed)


def model() -> Model:
    tokenizer = Tokenizer.bytes()
    shape = preset("toy", tokenizer.vocab_size)
    made = Model.fresh({"name": "autoregressive"}, tokenizer, shape, conditional=True)
    made.network.requires_grad_(False)
    return made


def test_a_model_that_changed_writes_with_its_new_weights() -> None:
    """The copies that make up the lean form are made again after an update in place."""
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


def test_int8_weights_need_a_network_that_can() -> None:
    made = model()
    assert made.generate("abc", max_new_tokens=3, weights="int8")[0].ids
    made.network.double()
    with pytest.raises(UserError, match="int8 weights are for float32 models on a CPU"):
        made.generate("abc", max_new_tokens=3, weights="int8")
    with pytest.raises(UserError, match="weights"):
        made.generate("abc", weights="int4")


def test_matrices_have_few_heights_and_keep_their_rows() -> None:
    heights = {count: len(level(torch.zeros(count, 1))) for count in range(4097)}
    assert all(count <= height <= count * 9 / 8 for count, height in heights.items())
    assert len(set(heights.values())) <= 8 * 10 + 1  # kernels are built, and kept, for each
    x = torch.randn(3, 7, 2)
    assert torch.equal(unlevel(level(x), x.shape[:-1]), x)
