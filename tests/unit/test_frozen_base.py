"""The frozen base under an adapter: its type in memory, packed matrices, experts, and activation checkpointing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import redraft
from redraft import adapters
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.lora import Lora
from redraft.model import Model
from redraft.models.parts import lora as parts
from redraft.models.parts.checkpointing import Checkpointing
from redraft.models.parts.lora import Adapted
from redraft.models.parts.moe import Experts
from redraft.models.parts.packed import Packed, linear, pack
from redraft.objectives.shared.vocabulary import backward
from redraft.presets import preset
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from redraft.types import AttentionPattern, Forward

IDS = torch.arange(5, 25)[None]
PACKINGS = ["int8", pytest.param("nf4", marks=pytest.mark.filterwarnings("ignore"))]


def model(**shape: Any) -> Model:
    tokenizer = Tokenizer.bytes()
    config = replace(preset("toy", tokenizer.vocab_size, dim=64, max_length=128), **shape)
    return Model.fresh({"name": "autoregressive"}, tokenizer, config, False, seed=3)


def request() -> Forward:
    pos = torch.arange(IDS.shape[1])[None]
    return Forward(IDS, pos, pos + 1, AttentionPattern("causal"))


def disturbed(made: Model) -> Model:
    generator = torch.Generator().manual_seed(0)
    for module in parts.adapted(made.network):
        module.lora_b.data.normal_(0, 0.05, generator=generator)
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose weights are stored in bfloat16."""
    folder = tmp_path_factory.mktemp("base") / "model"
    model().save(folder, storage="bfloat16")
    return folder


def recipe(base: Path, folder: Path, *changes: str) -> Recipe:
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"{n} times {n} is {n * n}" for n in range(200)))
    lora = {"rank": 4, "alpha": 8.0}
    values = {"data": {"source": str(text), "length": 64}, "model": {"from": str(base)}, "lora": lora}
    values["train"] = {"tokens": 3000, "batch_tokens": 512, "dtype": "float32", "threads": 1, "lr": 1e-2}
    return Recipe.of({**values, "family": {"name": "autoregressive"}}, overrides=list(changes))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_base_stays_in_the_type_that_it_came_in(
    dtype: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Model] = []
    attach = adapters.attach
    monkeypatch.setattr(adapters, "attach", lambda made, *more: (attach(made, *more), kept.append(made))[0])
    result = train(recipe(base, tmp_path, f"train.dtype={dtype}"), tmp_path / "run", device="cpu")
    before, after = redraft.load(base, "cpu", torch.bfloat16), kept[0].network
    for module in parts.adapted(after):
        assert isinstance(module, Adapted) and isinstance(module.weight, torch.nn.Parameter)
        assert module.weight.dtype == torch.bfloat16 and module.lora_a.dtype == torch.float32
        assert bool(module.lora_b.any())
    assert torch.equal(after.blocks[0].attention.qkv.weight, before.network.blocks[0].attention.qkv.weight)
    assert after.embedding.weight.dtype == torch.bfloat16
    assert result.validation is not None
    loaded = redraft.load(tmp_path / "run", "cpu")
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(request()), after.eval()(request()), rtol=1e-4, atol=1e-4)


def test_a_base_stored_in_bfloat16_trains_as_its_float32_copy(base: Path, tmp_path: Path) -> None:
    runs = [
        train(recipe(base, tmp_path, f"lora.base_dtype={dtype}"), tmp_path / dtype, device="cpu").validation
        for dtype in ("auto", "float32")
    ]
    assert runs[0] is not None and runs[1] is not None
    assert runs[0]["nats_per_token"] == pytest.approx(runs[1]["nats_per_token"], rel=1e-6)


def test_a_cast_matrix_is_not_kept_for_the_backward_pass() -> None:
    weight, x = torch.randn(40, 30).bfloat16(), torch.randn(7, 30, requires_grad=True)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = linear(x, weight)
    assert not kept
    y.square().sum().backward()
    expected = x.detach().clone().requires_grad_()
    F.linear(expected, weight.float()).square().sum().backward()
    torch.testing.assert_close(x.grad, expected.grad)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_matrix_is_near_and_its_products_are_exact(packing: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 48, 64)
    packed = pack(weight, packing)
    for number in range(3):
        dense = packed[number].dense(torch.float32)
        error = float((dense - weight[number]).norm() / weight[number].norm())
        assert error < {"int8": 0.01, "nf4": 0.1}[packing]  # steps of max / 127; 16 quantiles of a normal distribution
    assert packed.numel() == weight.numel() and packed.nbytes < weight.nbytes / {"int8": 3.5, "nf4": 7}[packing]
    x = torch.randn(5, 64, requires_grad=True)
    y = linear(x, packed[1])
    torch.testing.assert_close(y, x @ packed[1].dense(torch.float32).T)
    y.sum().backward()
    torch.testing.assert_close(x.grad, packed[1].dense(torch.float32).sum(0).expand(5, -1))


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_base_trains_near_its_float_one(packing: str, base: Path, tmp_path: Path) -> None:
    whole = train(recipe(base, tmp_path), tmp_path / "whole", device="cpu").validation
    result = train(recipe(base, tmp_path, f"lora.base_dtype={packing}"), tmp_path / "run", device="cpu")
    assert whole is not None and result.validation is not None
    assert result.validation["nats_per_token"] == pytest.approx(whole["nats_per_token"], rel=0.02)
    assert result.parameters == train(recipe(base, tmp_path), tmp_path / "whole", device="cpu").parameters
    assert redraft.load(tmp_path / "run", "cpu").generate("1", max_new_tokens=2)


def test_merging_into_a_packed_base_is_a_bug() -> None:
    made = model()
    adapters.attach(made, Lora(2), "base", "int8")
    with pytest.raises(ValueError, match="packed"):
        parts.merge(made.network)


EXPERTS = Experts(4, 2, 32, shared=16, dense=(0,))


@pytest.mark.parametrize("lora", [Lora(2), Lora(2, targets=r".*experts\.[13]\.(gate|down)_proj")], ids=["all", "some"])
def test_experts_have_adapters_in_the_layout_of_peft(lora: Lora, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model(experts=EXPERTS).save(tmp_path / "base")
    made = redraft.load(tmp_path / "base", "cpu")
    before = made.logits(IDS)
    adapters.attach(made, lora, str(tmp_path / "base"))
    assert torch.equal(made.logits(IDS), before)
    disturbed(made)
    unmerged = made.logits(IDS)
    assert float((unmerged - before).abs().max()) > 1e-2
    made.save(tmp_path / "adapter")
    names = {name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if ".experts." in name}
    experts, kinds = (range(4), ("gate", "up", "down")) if lora.targets == "all-linear" else ((1, 3), ("gate", "down"))
    prefix = "base_model.model.model.layers.1.mlp.experts"
    assert names == {f"{prefix}.{e}.{k}_proj.lora_{half}.weight" for e in experts for k in kinds for half in "AB"}
    torch.testing.assert_close(redraft.load(tmp_path / "adapter", "cpu").logits(IDS), unmerged, rtol=1e-5, atol=1e-5)
    parts.merge(made.network)
    torch.testing.assert_close(made.logits(IDS), unmerged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("packing", PACKINGS)
def test_packed_experts_are_near(packing: str) -> None:
    made = model(experts=EXPERTS)
    before = made.logits(IDS)
    count, cost = made.network.parameter_count, made.network.forward_cost()
    adapters.attach(made, Lora(1, targets=("q_proj",)), "base", packing)
    assert isinstance(made.network.blocks[1].mlp.experts_down, Packed)
    adapter = sum(p.numel() for p in made.network.parameters() if p.requires_grad)
    assert made.network.parameter_count == count + adapter
    assert made.network.forward_cost().position == cost.position + 2 * adapter
    error = (made.logits(IDS) - before).norm() / before.norm()
    assert float(error) < {"int8": 0.02, "nf4": 0.2}[packing]


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_checkpointing_changes_no_gradient(how: Checkpointing, low: bool) -> None:
    made = disturbed(_with_adapter())
    objective, spec = made.family.objective(), made.spec
    from redraft.likelihood import one_row

    prepared = objective.prepare(one_row([2], IDS[0].tolist()), spec, torch.Generator().manual_seed(0))
    found = []
    for mode in ("none", how):
        made.network.activation_checkpointing = mode  # type: ignore[assignment]
        made.network.zero_grad()
        torch.manual_seed(1)  # of the dropout
        loss = backward(made.network.train(), objective, prepared, 1.0, low)
        found.append((loss, [p.grad for p in made.network.parameters() if p.grad is not None]))
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(one, other) for one, other in zip(found[0][1], found[1][1], strict=True))


def _with_adapter() -> Model:
    made = model(qk_norm=True)
    adapters.attach(made, Lora(2, dropout=0.1), "base")
    made.network.set_dropout(0.1)
    return made


def test_nf4_without_its_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"redraft\[lowbit\]"):
        pack(torch.randn(4, 64), "nf4")
