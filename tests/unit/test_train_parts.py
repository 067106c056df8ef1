"""Schedules, averaged weights, checkpoints, recipes and counted arithmetic: the pure parts of training."""

from __future__ import annotations

import json
import resource
import tomllib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.model import Model
from redraft.models.parts.flops import attended_pairs
from redraft.objectives.masked import Masked
from redraft.presets import preset
from redraft.train import checkpoint, optim, schedules
from redraft.train.ema import Ema
from redraft.train.logging import Event, describe
from redraft.train.recipe import Recipe
from redraft.train.throughput import Meter, Peak
from redraft.types import AttentionPattern, Batch, Forward

share = st.floats(0.0, 1.0)

# ---- learning rates


@pytest.mark.parametrize("name", schedules.SCHEDULES)
@given(progress=share, warmup=st.floats(0.01, 0.5), floor=st.floats(0.0, 0.9))
def test_a_schedule_stays_between_nothing_and_the_peak_and_moves_smoothly(
    name: str, progress: float, warmup: float, floor: float
) -> None:
    here = schedules.SCHEDULES[name](progress, warmup, floor)
    there = schedules.SCHEDULES[name](min(progress + 1e-6, 1.0), warmup, floor)
    assert 0.0 <= here <= 1.0
    assert abs(there - here) < 2e-4  # the steepest slope is that of a warm-up over 1 % of the run
    if progress >= warmup:
        assert there <= here and here >= floor - 1e-12


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_a_schedule_starts_at_zero_peaks_after_the_warm_up_and_ends_at_its_floor(name: str) -> None:
    schedule = schedules.SCHEDULES[name]
    assert schedule(0.0, 0.1, 0.05) == 0.0
    assert schedule(0.1, 0.1, 0.05) == pytest.approx(1.0)
    assert schedule(1.0, 0.1, 0.05) == pytest.approx(1.0 if name == "constant" else 0.05)


def test_wsd_is_flat_between_warm_up_and_decay() -> None:
    assert {schedules.wsd(p / 100, 0.1, 0.0) for p in range(10, 81)} == {1.0}


def test_only_matrices_are_decayed() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    optimizer = optim.adamw(network, 0.1, (0.9, 0.98), weight_decay=0.5)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in network.named_parameters()} == {
        "0.weight": 0.5,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_an_update_counts_as_a_change_of_the_weights() -> None:
    """A fast form of the network, made from copies of its weights, is made anew for texts generated during training."""
    network = nn.Linear(4, 4)
    optimizer = optim.adamw(network, 0.1, (0.9, 0.98), weight_decay=0.0)
    network(torch.ones(1, 4)).sum().backward()
    before = [p._version for p in network.parameters()]
    optim.step(optimizer, 0.1)
    assert all(p._version > version for p, version in zip(network.parameters(), before, strict=True))


# ---- averaged weights


def test_the_average_follows_its_recurrence() -> None:
    network, decay = nn.Linear(3, 2), 0.6
    ema, expected = Ema(network, decay), network.weight.detach().double().clone()
    for n in range(20):
        with torch.no_grad():
            network.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(n)))
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * network.weight.detach().double()
    torch.testing.assert_close(ema.shadow["weight"].double(), expected, atol=1e-6, rtol=1e-6)


def test_applying_the_average_gives_the_weights_back() -> None:
    network = nn.Linear(3, 2)
    ema = Ema(network, 0.9)
    with torch.no_grad():
        network.weight.zero_()
    average = ema.shadow["weight"].clone()
    with pytest.raises(RuntimeError), ema.applied():
        assert torch.equal(network.weight, average)
        raise RuntimeError
    assert not network.weight.any() and torch.equal(ema.shadow["weight"], average)


# ---- checkpoints


def _tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(50, 30, generator=generator), "random": generator.get_state()}


def test_a_checkpoint_comes_back_as_it_was_and_two_are_kept(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path) is None
    for step in (9, 10, 11):
        checkpoint.save(tmp_path, step, _tensors(step), {"step": step, "loss": 0.1 + 0.2})
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["checkpoint-000000010", "checkpoint-000000011"]
    assert [p for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    loaded = checkpoint.latest(tmp_path)
    assert loaded is not None and loaded.values == {"step": 11, "loss": 0.1 + 0.2}
    tensors = loaded.tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in _tensors(11).items())


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["state.safetensors", "state.json"])
@pytest.mark.parametrize(
    "harm",
    [_flip, lambda p: p.write_bytes(p.read_bytes()[:-40]), lambda p: p.write_bytes(b""), lambda p: p.unlink()],
    ids=["flipped", "truncated", "empty", "gone"],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(tmp_path: Path, file: str, harm) -> None:  # type: ignore[no-untyped-def]
    for step in (1, 2):
        saved = checkpoint.save(tmp_path, step, _tensors(), {"text": "x" * 100})
    harm(saved / file)
    with pytest.raises(UserError) as error:
        checkpoint.latest(tmp_path)
    assert str(saved) in str(error.value) and "checkpoint-000000001" in error.value.remedy


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, _tensors(), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # writing beyond 4 kB fails, as on a full disk
    try:
        with pytest.raises(UserError, match="no space"):
            checkpoint.save(tmp_path, 2, _tensors(), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000000001"]
    assert checkpoint.latest(tmp_path) is not None


def test_nothing_pickled_is_ever_loaded() -> None:
    """From a file. The one process that exchanges pickles does so with its own child, through a pipe."""
    package = Path(checkpoint.__file__).parents[1]
    for path in set(package.rglob("*.py")) - {package / "constraints/shared/worker.py"}:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert not any("import pickle" in line for line in lines), path
        loads = [line for line in lines if "torch.load(" in line]  # of old public checkpoints
        assert all("weights_only=True" in line for line in loads), f"{path}: nothing but tensors may be read"


# ---- recipes

TABLES = {"data": {"source": "x"}, "train": {"tokens": 1000}, "family": {"name": "masked", "schedule": "cosine"}}


def test_a_recipe_survives_toml(tmp_path: Path) -> None:
    recipe = Recipe.of({**TABLES, "model": {"from": "zoo/x", "preset": "toy", "config": {"dim": 32, "qk_norm": True}}})
    path = tmp_path / "recipe.toml"
    path.write_text(recipe.to_toml(), encoding="utf-8")
    assert Recipe.load(path) == recipe
    assert recipe.difference(tomllib.loads(recipe.to_toml())) == []


def test_overrides_reach_their_table() -> None:
    recipe = Recipe.of(TABLES, overrides=["train.lr=2e-4"])
    assert recipe.train.lr == 2e-4
    assert Recipe.of(TABLES, overrides=["data.source=my file", "model.config.dim=64"]).model.config == {"dim": 64}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": {"tokens": 10, "learning_rate": 1}}, "learning_rate"),
        ({"train": {}}, "budget"),
        ({"train": {"tokens": 10, "schedule": "linear"}}, "schedule"),
        ({"train": {"tokens": 10, "dropout": 1.5}}, "dropout"),
        ({"train": {"tokens": "many"}}, "tokens"),
        ({"trian": {}}, "trian"),
        ({"family": {"name": "maskd"}}, "masked"),
        ({"family": {"name": "masked", "sched": "cosine"}}, "schedule"),
    ],
)
def test_a_wrong_recipe_is_refused_by_name(change: dict, says: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UserError, match=says):
        Recipe.of({**TABLES, **change})


def test_two_recipes_tell_their_difference_but_not_where_files_lie() -> None:
    old = Recipe.of(TABLES).tables()
    new = Recipe.of(TABLES, overrides=["train.lr=5e-4", "data.data_root=elsewhere", "train.save_every_seconds=1"])
    assert [line.split(":")[0] for line in new.difference(json.loads(json.dumps(old)))] == ["train.lr"]


def test_a_checkpoint_is_a_folder_beside_the_recipe_or_a_name(tmp_path: Path) -> None:
    """A recipe called like the checkpoint that it begins with is not taken for it."""
    (tmp_path / "base.toml").write_text("[data]\nsource = 'x'\n[train]\ntokens = 1\n[model]\nfrom = 'base'\n")
    assert Recipe.load(tmp_path / "base.toml").start == "base"
    (tmp_path / "base").mkdir()
    assert Recipe.load(tmp_path / "base.toml").start == str(tmp_path / "base")


def test_a_run_outlives_the_coming_of_new_options() -> None:
    recipe = Recipe.of({"data": {"source": "x"}, "train": {"tokens": 1}, "family": {"name": "masked"}})
    old = recipe.tables()
    del old["train"]["drop_prompt"]  # as if it had been written before there was such an option
    assert recipe.difference(old) == []
    changed = Recipe.of({"data": {"source": "x"}, "train": {"tokens": 1, "drop_prompt": 0.1}})
    assert [line.split(":")[0] for line in changed.difference(old)] == ["train.drop_prompt"]


# ---- arithmetic


def _batch(lengths: list[int], prompts: list[int] | None) -> Batch:
    at = torch.arange(max(lengths))[None]
    valid = at < torch.tensor(lengths)[:, None]
    begin = torch.tensor(prompts or [0] * len(lengths))
    ids = torch.randint(5, 200, valid.shape, generator=torch.Generator().manual_seed(0)).masked_fill(~valid, 0)
    prompt = begin if prompts else None
    return Batch(ids, valid & (at >= begin[:, None]), valid, prompt, torch.tensor(lengths))


def test_counted_flops_are_those_of_torchs_counter() -> None:
    model = Model.fresh({"name": "masked"}, Tokenizer.bytes(), preset("toy", 261), paired=False)
    prepared = Masked().prepare(_batch([24] * 4, None), model.spec, torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # it overlooks CPU's fused kernel
        model.network(prepared.request).sum().backward()
    assert counter.get_total_flops() == model.network.forward_cost().of_training(prepared)


@pytest.mark.parametrize("attend", [AttentionPattern("causal"), AttentionPattern("full"), AttentionPattern("block", 3)])
@pytest.mark.parametrize("prompts", [None, [2, 5]])
def test_seen_pairs_are_those_the_definition_allows(attend: AttentionPattern, prompts: list[int] | None) -> None:
    batch = _batch([7, 9], prompts)
    pos = torch.where(batch.valid, torch.arange(9)[None], -1)
    request = Forward(tokens=batch.ids, positions=pos, targets=pos, attention=attend, prompt=batch.prompt)
    group = attend.group(pos, batch.prompt)
    allowed = sum(
        bool(group[r, j] <= group[r, i])
        for r in range(2)
        for i in range(9)
        for j in range(9)
        if pos[r, i] >= 0 and pos[r, j] >= 0
    )
    assert attended_pairs(request) == allowed


def test_a_meter_leaves_out_pauses_and_plans_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [50.0]
    monkeypatch.setattr("redraft.train.throughput.time.perf_counter", lambda: now[0])
    meter = Meter(torch.device("cpu"), 1000, 0)  # a run taken up after 1000 tokens
    now[0] += 2.0
    assert meter.lap(1200, 600) == (100.0, 300.0)
    assert meter.ahead(400) == pytest.approx(4.0)
    now[0] += 1.0
    with meter.pause():
        now[0] += 8.0
    now[0] += 1.0
    assert meter.lap(1400, 1200) == (100.0, 300.0)
    assert meter.ahead(400) == pytest.approx(4.0 + 8.0)  # 8 s of pause in 400 tokens so far


def test_a_share_of_peak_never_exceeds_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak is measured again beside the work and the best counts; where it is still exceeded there is no figure."""
    now, measured = [0.0], iter([100.0, 60.0, 180.0])
    monkeypatch.setattr("redraft.train.throughput.time.monotonic", lambda: now[0])
    monkeypatch.setattr("redraft.train.throughput.runtime.peak_matmul", lambda *args, **kwargs: next(measured))
    peak = Peak(torch.device("cpu"), torch.float32)  # on a busy machine
    assert peak.share(50.0) == 0.5 and peak.share(167.0) is None
    now[0] = 4.0
    assert peak.is_due(167.0) and not peak.is_due(50.0)
    peak.measure()
    assert peak.flops == 100.0, "a lower measurement changes nothing"
    now[0] = 40.0
    assert peak.is_due(50.0)
    peak.measure()
    assert peak.share(167.0) == pytest.approx(167 / 180)


def test_an_update_without_a_share_of_peak_is_described() -> None:
    values = {"loss": 2.0, "tokens_per_second": 10.0, "eta_seconds": 3.0}
    assert "%" not in describe(Event("update", 3, 30, {**values, "share_of_peak": None}))
    assert "50 %" in describe(Event("update", 3, 30, {**values, "share_of_peak": 0.5}))


def test_measuring_the_peak_again_draws_no_random_numbers() -> None:
    peak = Peak(torch.device("cpu"), torch.float32, seconds=0.01)
    before = torch.get_rng_state()
    peak.measure(seconds=0.01)
    assert torch.equal(torch.get_rng_state(), before)
