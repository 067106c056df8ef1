"""Plans of memory: near what tensors take, chosen checkpointing, refusal with a remedy, and a dry run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft import host_memory, runtime
from redraft.data.examples import Example
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.evaluation.memory import LiveBytes
from redraft.lora import Lora
from redraft.model import Model
from redraft.models.parts import lora as parts
from redraft.models.parts.frozen import freeze
from redraft.objectives.shared import vocabulary
from redraft.objectives.shared.vocabulary import backward
from redraft.planning import training
from redraft.planning.machine import process_bytes
from redraft.planning.parallel import Parallel
from redraft.planning.texts import Texts
from redraft.presets import preset
from redraft.saving import public_names
from redraft.train.recipe import Recipe
from redraft.types import Batch

CPU = torch.device("cpu")
ROWS, LENGTH, LAYERS = 6, 64, 5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    tokenizer = Tokenizer.bytes()
    shape = replace(preset("toy", tokenizer.vocab_size, dim=64, max_length=128), layers=LAYERS)
    Model.fresh({"name": "autoregressive"}, tokenizer, shape, False).save(folder)
    return folder


def recipe(base: Path, lora: bool = True, **changes: Any) -> Recipe:
    values: dict[str, Any] = {"data": {"source": "unused.txt", "length": LENGTH}, "model": {"from": str(base)}}
    values["train"] = {
        "tokens": 100,
        "batch_tokens": ROWS * LENGTH,
        "dtype": "float32",
        "validation_rows": 0,
        **changes,
    }
    values |= {"family": {"name": "autoregressive"}, "lora": {"rank": 4, "alpha": 8.0} if lora else None}
    return Recipe.of(values)


@pytest.mark.parametrize("mode", training.MODES)
@pytest.mark.parametrize("lora", [True, False], ids=["adapter", "whole"])
def test_activations_are_those_that_an_update_keeps(mode: str, lora: bool, base: Path) -> None:
    """Counted on the whole network, which has more blocks and rows than the twins that the plan runs."""
    import redraft

    made = redraft.load(base, "cpu")
    made.network.requires_grad_(True)
    if lora:
        parts.attach(made.network, Lora(4, 8.0), public_names(made))
        freeze(made.network)
    made.network.activation_checkpointing = mode  # type: ignore[assignment]
    ids = torch.randint(8, 200, (ROWS, LENGTH))
    target = torch.ones_like(ids, dtype=torch.bool)
    target[:, 0] = False
    batch = Batch(ids, target, torch.ones_like(target), None, torch.full((ROWS,), LENGTH))
    objective = made.family.objective()
    prepared = objective.prepare(batch, made.spec, torch.Generator())
    with LiveBytes(made.network.train()) as live:
        backward(made.network, objective, prepared, 1.0)
    gradients = sum(p.grad.nbytes for p in made.network.parameters() if p.grad is not None)
    found = training.plan(recipe(base, lora, activation_checkpointing=mode), CPU)
    assert found.gradients == pytest.approx(gradients, rel=0.01)  # a parameter without use has none
    assert found.weights == 4 * made.network.parameter_count
    assert found.update == pytest.approx(live.peak, rel=0.1)


def test_what_is_live_is_counted_and_what_is_freed_is_not() -> None:
    network = torch.nn.Linear(8, 8)
    with LiveBytes(network) as live:
        x = torch.zeros(1000)
        y = x.view(10, 100)
        assert live.now == live.peak == 4000
        z = y + 1
        assert live.now == 8000
        del x, y
        assert (live.now, live.peak) == (4000, 8000)
        del z
        network.weight.t()
    assert (live.now, live.peak) == (0, 8000)


def test_checkpointing_is_chosen_when_memory_needs_it(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = [training.plan(recipe(base, activation_checkpointing=m), CPU) for m in training.MODES]
    activations = [each.activations for each in totals]
    assert activations == sorted(activations, reverse=True) and activations[0] > 2 * activations[2]
    process = totals[0].process
    monkeypatch.setattr(training, "process_bytes", lambda: process)
    for number, mode in enumerate(training.MODES):
        total = replace(totals[number], process=process).total
        monkeypatch.setattr(training, "available", lambda device, t=total: int(t / 0.95) + 1)
        chosen, found = training.fitted(recipe(base), CPU)
        assert chosen.train.activation_checkpointing == found.checkpointing == mode
        assert found.largest_batch <= ROWS * LENGTH


@pytest.mark.parametrize(
    ("changes", "remedy"), [({"lora": False}, "--lora-rank"), ({}, "--base-dtype"), ({"lora": False}, "adamw8bit")]
)
def test_a_run_that_cannot_fit_is_refused_with_a_remedy(
    changes: dict[str, Any], remedy: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "available", lambda device: 1 << 20)
    with pytest.raises(UserError, match="1 MB are available") as raised:
        training.fitted(recipe(base, **changes), CPU)
    assert remedy in str(raised.value)


def test_a_smaller_batch_is_offered_where_one_fits(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = training.plan(recipe(base, batch_tokens=LENGTH), CPU)
    monkeypatch.setattr(training, "available", lambda device: int(small.total * 1.3))
    with pytest.raises(UserError, match=r"train\.batch_tokens=\d+"):
        training.fitted(recipe(base, batch_tokens=1 << 22, activation_checkpointing="none"), CPU)


def test_a_run_without_a_checkpoint_has_a_plan_too() -> None:
    values: dict[str, Any] = {"data": {"source": "unused.txt"}, "train": {"tokens": 100, "optimizer": "adamw8bit"}}
    found = training.plan(Recipe.of({**values, "model": {"preset": "1m"}}), CPU)
    assert found.optimizer < found.gradients and "weights" in str(found) and found.to_json()["total"] == found.total


@pytest.mark.parametrize("key", ["inactive_file", "total_inactive_file"])
def test_files_that_were_read_take_nothing_of_the_memory_of_a_container(tmp_path: Path, key: str) -> None:
    for name, content in (("max", "1000"), ("current", "900"), ("memory.stat", f"anon 300\n{key} 600")):
        (tmp_path / name).write_text(f"{content}\n")
    assert host_memory._left_in_group(tmp_path / "max", tmp_path / "current") == 700
    (tmp_path / "max").write_text("max\n")
    assert host_memory._left_in_group(tmp_path / "max", tmp_path / "current") is None


def test_memory_that_was_freed_is_not_counted_as_the_process() -> None:
    """Nor is what only a cycle of references holds, as after a training."""
    before = process_bytes()
    with runtime.keep_freed_memory():
        held: list[Any] = [torch.zeros(1 << 18) for _ in range(400)]
        held.append(held)
        assert process_bytes() > before + (300 << 20)
        del held
        assert process_bytes() < before + (50 << 20)


# phases


def examples(count: int, words: int) -> list[Example]:
    return [Example(None, " ".join(f"w{(17 * n + k) % words}" for k in range(100)), f"row {n}") for n in range(count)]


def test_the_largest_phase_counts(base: Path) -> None:
    """A large text before a small model, and validation of long rows beside a small batch."""
    small = recipe(base, lora=False)
    plain = training.plan(small, CPU)
    assert plain.total == plain.phases["updates"] and plain.texts == 0
    rows = examples(5000, 1000)
    texts = Texts.of(rows)
    found = training.plan(small, CPU, texts=texts)
    assert found.preparation > sum(len(row.target) for row in rows), "rows, and what is made of them"
    large = training.plan(small, CPU, texts=replace(texts, held=10**10, characters=10**10))
    assert large.total == large.phases["preparation"] > 10**10
    assert f"{large.phases['preparation'] / 1e9:.2f} GB in preparation" in str(large)
    checked = replace(small, train=replace(small.train, validation_rows=100, batch_tokens=LENGTH))
    assert training.plan(checked, CPU).phases["validation"] > training.plan(small, CPU).phases["validation"]


def test_texts_are_counted_and_words_estimated_from_a_sample() -> None:
    rows = examples(300, 1000)
    found = Texts.of(rows, [rows[:10]])
    assert found.characters == sum(len(row.target) for row in rows) and found.words == 1000
    assert found.held > found.characters
    assert Texts.of(rows * 200).words >= 1000


def test_ranks_copy_the_state_that_they_save(base: Path) -> None:
    alone, ddp, fsdp = (
        training.plan(recipe(base, lora=False, accumulate=2), CPU, parallel=Parallel(workers, kind))
        for workers, kind in ((1, "ddp"), (2, "ddp"), (2, "fsdp"))
    )
    assert alone.saving == 0 and ddp.saving == ddp.weights + ddp.optimizer
    assert fsdp.saving == pytest.approx(ddp.saving / 2, rel=0.01)


@pytest.mark.parametrize("width", [300, 8192, 151_936])
def test_parts_that_are_scored_have_a_bounded_size(width: int) -> None:
    """Whatever the number of targets: at most as many logits as a part of training has, and enough rows to be fast."""
    rows = vocabulary.part_rows(10**6, width, scored=True)
    assert rows * width <= vocabulary.PART and rows >= min(512, vocabulary.PART // width)
    assert vocabulary.part_rows(10, width) == 10 and vocabulary.part_rows(10**6, width) * width <= vocabulary.PART
