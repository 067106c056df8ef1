"""Laws of networks: attention patterns, padding, gradients, and saving without loss."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.loading import load
from redraft.model import Model
from redraft.models.parts.mlp import SwiGLU
from redraft.models.parts.norms import LayerNorm, RMSNorm
from redraft.models.parts.positions import rotary_table, rotate
from redraft.models.transformer import Transformer
from redraft.presets import names, preset
from redraft.types import AttentionPattern, Forward

SHAPES = [
    pytest.param({}, id="default"),
    pytest.param({"heads": 4, "kv_heads": 2, "qk_norm": True, "tied": False}, id="grouped-qknorm-untied"),
    pytest.param({"timed": True}, id="timed"),
    pytest.param({"shift": 1}, id="shifted"),
    pytest.param({"window": 4, "distant": (1,)}, id="windowed"),
]


def network(**changes: object) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(preset("toy", 40, **changes)).double().eval()  # type: ignore[arg-type]
    for parameter in made.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(5)
    return made


def make_request(
    net: Transformer, x: torch.Tensor, attend: AttentionPattern, lengths: list[int] | None = None, **more: object
) -> Forward:
    columns = torch.arange(x.shape[1])
    ends = torch.tensor(lengths or [x.shape[1]] * len(x))[:, None]
    pos = torch.where(columns < ends, columns, -1)
    targets = torch.where(pos >= net.config.shift, pos, -1)
    t = torch.linspace(0.2, 0.9, len(x)) if net.config.timed else None
    return Forward(tokens=x, positions=pos, targets=targets, attention=attend, time=t, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention_does_not_depend_on_later_positions(shape: dict[str, object]) -> None:
    net = network(**shape)
    x = torch.randint(5, 40, (1, 10))
    changed = x.clone()
    changed[0, 6:] = (x[0, 6:] + 3) % 35 + 5
    before, after = (
        net(make_request(net, x, AttentionPattern("causal"))),
        net(make_request(net, changed, AttentionPattern("causal"))),
    )
    torch.testing.assert_close(before[:6], after[:6], rtol=0, atol=0)
    assert not torch.allclose(before[7:], after[7:])


@pytest.mark.parametrize(
    "attend", [AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 3)], ids=lambda a: a.kind
)
def test_local_attention_has_the_width_of_its_window(attend: AttentionPattern) -> None:
    """A layer with local attention doesn't attend to positions ``window`` away; a layer with full attention does."""
    x = torch.randint(5, 40, (1, 12))
    for distant in ((), (0,)):
        net = network(layers=1, window=4, distant=distant)
        base = net(make_request(net, x, attend))
        for position in range(12):
            changed = x.clone()
            changed[0, position] = (x[0, position] + 3) % 35 + 5
            moved = (net(make_request(net, changed, attend)) - base).abs().amax(1) > 1e-9
            stage = attend.group(torch.arange(12)[None], None)[0]
            near = (torch.arange(12) - position).abs() < 4
            assert torch.equal(moved, (stage >= stage[position]) & (near if not distant else torch.ones(12) > 0))


def test_blocks_attend_to_themselves_and_earlier_blocks() -> None:
    net = network()
    x = torch.randint(5, 40, (1, 9))
    base = net(make_request(net, x, AttentionPattern("block", 3)))
    for position in range(9):
        changed = x.clone()
        changed[0, position] = (x[0, position] + 3) % 35 + 5
        moved = (net(make_request(net, changed, AttentionPattern("block", 3))) - base).abs().amax(1) > 1e-9
        assert moved.tolist() == [other // 3 >= position // 3 for other in range(9)]


def test_an_isolated_prompt_does_not_attend_to_the_answer() -> None:
    net = network()
    x = torch.randint(5, 40, (1, 9))
    prompt = torch.tensor([4])
    changed = x.clone()
    changed[0, 5] = (x[0, 5] + 3) % 35 + 5
    base, moved = (net(make_request(net, ids, AttentionPattern("full"), prompt=prompt)) for ids in (x, changed))
    torch.testing.assert_close(base[:4], moved[:4], rtol=0, atol=0)
    assert ((base[4:] - moved[4:]).abs().amax(1) > 1e-9).all()


@pytest.mark.parametrize(
    "attend", [AttentionPattern("full"), AttentionPattern("causal"), AttentionPattern("block", 3)], ids=lambda a: a.kind
)
@pytest.mark.parametrize("shape", SHAPES)
def test_padding_changes_nothing(shape: dict[str, object], attend: AttentionPattern) -> None:
    net = network(**shape)
    x = torch.randint(5, 40, (2, 10))
    both = net(make_request(net, x, attend, [6, 10]))
    one = make_request(net, x[:1, :6], attend)
    count = int((one.targets >= 0).sum())
    torch.testing.assert_close(both[:count], net(one), rtol=1e-9, atol=1e-9)


def test_only_target_positions_have_logits() -> None:
    net = network()
    x = torch.randint(5, 40, (2, 10))
    whole = net(make_request(net, x, AttentionPattern("full"))).view(2, 10, -1)
    some = make_request(net, x, AttentionPattern("full"))
    some.targets = torch.tensor([[7, 2, -1], [0, 9, 4]])
    expected = torch.stack([whole[0, 7], whole[0, 2], whole[1, 0], whole[1, 9], whole[1, 4]])
    torch.testing.assert_close(net(some), expected, rtol=1e-9, atol=1e-9)


def test_hand_written_gradients_equal_autograd() -> None:
    torch.manual_seed(0)
    x, grad = torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 5, 8)
    norm, mlp = RMSNorm(8), SwiGLU(8, 16)
    norm.weight.data.normal_()
    ours = torch.autograd.grad((norm(x) * grad).sum(), [x, norm.weight])
    theirs = torch.autograd.grad((F.rms_norm(x, (8,), norm.weight, 1e-6) * grad).sum(), [x, norm.weight])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gate, up = mlp.gate_up(x).chunk(2, -1)
    ours = torch.autograd.grad((mlp(x) * grad).sum(), [x, mlp.gate_up.weight])
    theirs = torch.autograd.grad((mlp.down(F.silu(gate) * up) * grad).sum(), [x, mlp.gate_up.weight])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    table = rotary_table(5, 8, 10_000.0)[None].double()
    y = torch.randn(2, 5, 3, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: rotate(value, table), y)


@pytest.mark.parametrize("norm", [RMSNorm(8), LayerNorm(8), LayerNorm(8, bias=False)], ids=["rms", "layer", "no-bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_with_weights_in_bfloat16(norm: torch.nn.Module, dtype: torch.dtype) -> None:
    """As FSDP2 gathers them, and a frozen base holds them: the values and gradients of the same weights in float32."""
    torch.manual_seed(0)
    for weight in norm.parameters():
        weight.data.normal_()
    low, exact = deepcopy(norm).bfloat16(), deepcopy(norm).bfloat16().float()
    x, grad = torch.randn(3, 5, 8).to(dtype), torch.randn(3, 5, 8)
    ours, theirs = x.clone().requires_grad_(), x.float().requires_grad_()
    found, wanted = low(ours), exact(theirs)
    assert found.dtype == dtype
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    (found.float() * grad).sum().backward()
    (wanted * grad).sum().backward()
    assert ours.grad is not None
    torch.testing.assert_close([found.float(), ours.grad.float()], [wanted, theirs.grad], **near)
    for one, other in zip(low.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, check_dtype=False, rtol=2e-2, atol=5e-2)
    with torch.no_grad():
        torch.testing.assert_close(low(x).float(), exact(x.float()), **near)


def test_rotation_depends_only_on_distance() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 8).double()
    table = rotary_table(50, 8, 10_000.0).double()

    def product(i: int, j: int) -> float:
        a, b = (rotate(v.view(1, 1, 1, 8), table[None, p : p + 1]).flatten() for v, p in ((q, i), (k, j)))
        return float(a @ b)

    assert product(3, 10) == pytest.approx(product(33, 40), abs=1e-6)
    assert product(0, 0) == pytest.approx(float(q @ k), abs=1e-9)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
def test_save_and_load(tmp_path: Path, storage: str, tied: bool) -> None:
    tokenizer = Tokenizer.bytes()
    model = Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size, tied=tied), True)
    model.save(tmp_path / "m", storage)
    again = load(tmp_path / "m")
    error = {"float32": 0.0, "bfloat16": 2**-8, "int8": 1 / 127}[storage]
    for (name, old), new in zip(model.network.named_parameters(), again.network.parameters(), strict=True):
        bound = error * old.abs().amax() if storage != "float32" else 0.0
        assert ((old - new).abs() <= bound).all(), name
    again.save(tmp_path / "n", storage)
    twice = load(tmp_path / "n")
    for old, new in zip(again.network.parameters(), twice.network.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=1e-6 if storage == "int8" else 0)
    assert (again.family, again.spec, again.paired) == (model.family, model.spec, True)


@pytest.mark.parametrize("name", names()[: names().index("125m")])
def test_presets_can_be_built(name: str) -> None:
    with torch.device("meta"):
        Transformer(preset(name, 8192))


def test_presets_have_the_size_in_their_name() -> None:
    with torch.device("meta"):
        sizes = {
            "1m": 1.1,
            "3m": 3.3,
            "7m": 6.9,
            "25m": 25,
            "1b": 1000,
            "8b": 8000,
            "32b": 32e3,
            "70b": 70e3,
            "100b": 1e5,
        }
        for name, millions in sizes.items():
            vocabulary = 128_256 if millions >= 8000 else 8192
            count = sum(p.numel() for p in Transformer(preset(name, vocabulary)).parameters()) / 1e6
            assert count == pytest.approx(millions, rel=0.12), name


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = Tokenizer.bytes()
    folder = tmp_path_factory.mktemp("saved") / "m"
    Model.fresh({"name": "masked"}, tokenizer, preset("toy", tokenizer.vocab_size), True).save(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_runs_in_other_precisions(saved: Path, dtype: torch.dtype) -> None:
    model = load(saved, dtype=dtype)
    assert model.logits(torch.randint(5, 90, (1, 6))).dtype == dtype
    assert model.generate(["a", "longer"], max_new_tokens=8, temperature=1.0, candidates=2)[0].ids


@pytest.mark.parametrize(
    ("where", "value", "word"),
    [
        (["family"], "masked", "family"),
        (["family", "name"], 5, "masked"),
        (["family", "timed"], True, "masked"),  # the network has no time conditioning
        (["family"], {"name": "autoregressive"}, "autoregressive"),
        (["network"], "transformer", "network"),
        (["network", "name"], "rnn", "rnn"),
        (["network", "heads"], 0, "heads"),
        (["network", "kv_heads"], -1, "kv_heads"),
        (["network", "vocab_size"], 300, "vocab_size"),
        (["network", "depth"], 3, "depth"),
        (["paired"], "sometimes", "paired"),
        (["extra"], 1, "extra"),
        (["redraft_format"], 99, "99"),
    ],
)
def test_an_invalid_configuration_is_a_user_error(
    saved: Path, tmp_path: Path, where: list[str], value: object, word: str
) -> None:
    folder = shutil.copytree(saved, tmp_path / "m")
    described = json.loads((folder / "config.json").read_text())
    table = described if len(where) == 1 else described[where[0]]
    table[where[-1]] = value
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=word):
        load(folder)


@pytest.mark.parametrize("missing", [["paired"], ["network", "vocab_size"], ["family", "name"]])
def test_a_configuration_with_a_missing_part_is_a_user_error(saved: Path, tmp_path: Path, missing: list[str]) -> None:
    folder = shutil.copytree(saved, tmp_path / "m")
    described = json.loads((folder / "config.json").read_text())
    (described if len(missing) == 1 else described[missing[0]]).pop(missing[-1])
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match=f"{missing[-1]}.*missing|needs a {missing[-1]}"):
        load(folder)


@pytest.mark.parametrize("text", ['{"stepz": 3}', '{"steps": "many"}', "[]", '{"options": 5}', '{"top_p": 7}', "{"])
def test_invalid_generation_settings_are_rejected_when_loading(saved: Path, tmp_path: Path, text: str) -> None:
    folder = shutil.copytree(saved, tmp_path / "m")
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UserError):
        load(folder)


def test_network_and_tokenizer_need_the_same_vocabulary() -> None:
    with pytest.raises(UserError, match="vocab_size"):
        Model.fresh({"name": "masked"}, Tokenizer.bytes(), preset("toy", 100), True)
