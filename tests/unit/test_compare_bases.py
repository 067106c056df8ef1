"""A study that starts from checkpoints: one that is converted for every family, or several of different tokenizers."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from redraft.compare import run as runs
from redraft.compare import setup as setups
from redraft.compare import time_budget
from redraft.compare.bases import Base
from redraft.compare.checkpoints import find_bases
from redraft.compare.record import Record
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.loading import load
from tests.checkpoints import write

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE |= {"max_position_embeddings": 96, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": 0}
WORDS = {"one": "eins", "two": "zwei", "red": "rot", "dog": "Hund", "sees": "sieht", "house": "Haus"}


def rows(count: int) -> list[tuple[str, str]]:
    names = list(WORDS)
    chosen = [[names[(n * k + k) % 6] for k in range(1, 3 + n % 4)] for n in range(count)]
    return [(f"{n} {' '.join(each)}", f"{n} {' '.join(WORDS[word] for word in each)}") for n, each in enumerate(chosen)]


def llama(folder: Path, size: int, **more: Any) -> Path:
    """A tiny Llama of random weights, without a mask token, whose byte-level tokenizer has ``size`` entries at most."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text for pair in rows(90) for text in pair], trainer)
    kind = {"model_type": "llama", "vocab_size": backend.get_vocab_size()}
    write(folder, SHAPE | kind | more)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("base") / "tiny", 300)


def study(folder: Path, bases: dict[str, str], **fields: Any) -> Study:
    lines = [json.dumps({"english": one, "german": other}) for one, other in rows(90)]
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given: dict[str, Any] = {
        "data": str(folder / "mine.jsonl"),
        "input": "english",
        "target": "german",
        "families": tuple(bases),
        "bases": bases,
        "budget_tokens": 1000,
        "steps": (2,),
        "test_rows": 2,
        "validation_rows": 2,
        "timed_calls": 2,
        "batch_sizes": (1,),
        "train": {"validation_rows": 4, "validate_every": 0, "threads": 1},
        "device": "cpu",
        "out": str(folder / "out"),
    }
    return Study(**{**given, **fields})


def run(given: Study) -> Record:
    torch.manual_seed(0)
    return runs.run(given, lambda line: None)


def test_one_autoregressive_checkpoint_is_converted_for_every_other_family(base: Path, tmp_path: Path) -> None:
    families = ["autoregressive", "masked", "block", "hybrid", "expand"]
    bases = find_bases([str(base)], families)
    assert bases == {family: str(base) for family in families}
    annealed, soft = {"name": "anneal", "until": 0.2}, {"name": "soft_targets", "top": 8, "also": {"name": "align"}}
    found = run(study(tmp_path, bases, lora_rank=4, max_new_tokens=6, curriculum=annealed, objective=soft))
    assert found.complete, found.missing
    assert [run.family for run in found.training] == families
    tokens = [run.tokens for run in found.training]
    assert max(tokens) < 1.1 * min(tokens)
    starts = {start.family: start for start in found.starts}
    assert {family: start.converted for family, start in starts.items()} == {
        family: family != "autoregressive" for family in families
    }
    assert starts["masked"].curriculum == annealed
    assert [family for family in families if starts[family].objective] == ["masked", "block", "hybrid"]
    assert starts["masked"].objective == soft and found.training[1].flops > 1.5 * found.training[0].flops
    assert starts["hybrid"].curriculum == starts["block"].curriculum == {}  # anneal does not suit them
    assert starts["autoregressive"].added == () and starts["masked"].added == ("mask",)
    assert {start.tokens_per_token for start in found.starts} == {1.0}  # an added special token changes no text
    for run_ in found.training:  # equal adapters, and nothing else is kept of the base
        folder = tmp_path / "out" / run_.model
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
        assert not list(folder.rglob("model.safetensors"))
        assert load(folder, "cpu").family_name == run_.family
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "converted from an autoregressive checkpoint" in text and "adapters of rank 4" in text
    assert "also learned from the checkpoint (soft_targets)" in text
    assert "anneal (until 0.2); soft_targets (top 8) with align" in text
    assert Record.load(tmp_path / "out" / "results.json") == found
    assert replace(runs.render(tmp_path / "out"), created=found.created) == found


def test_a_study_of_large_checkpoints_is_planned_for_an_hour(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the checkpoint is named. A tiny one counts as large here."""
    monkeypatch.setattr(setups, "LARGE", 1000)
    monkeypatch.setattr(setups, "ADAPTED", 1000)
    given = study(tmp_path, find_bases([str(base)], ["autoregressive", "masked"]), budget_tokens=0)
    begun = runs.begin(replace(given, steps=(), batch_sizes=(), train={"threads": 1}), lambda line: None)
    plan, held = begun.prepared.plan, begun.prepared.study
    assert held.batch_sizes == setups.LARGE_BATCH_SIZES and held.minutes == 0.0  # as it was given
    assert {s.steps for s in plan.settings if s.family == "masked"} <= {*setups.LARGE_STEPS}
    assert plan.total_seconds <= 60 * time_budget.LARGE_MINUTES and plan.tokens > 0
    assert {start.lora_rank for start in begun.prepared.starts} == {setups.ADAPTER_RANK}
    assert begun.bench is not None and begun.bench.deadline > time.time() + 60 * time_budget.DEFAULT_MINUTES


def test_the_base_under_adapters_can_be_packed(base: Path, tmp_path: Path) -> None:
    """A type for frozen weights asks for adapters, and the memory is planned before training."""
    bases, told = find_bases([str(base)], ["autoregressive", "masked"]), list[str]()
    begun = runs.begin(study(tmp_path, bases, base_dtype="int8"), told.append)
    assert begun.bench is not None
    for family in bases:
        lora = begun.bench.setup.recipe(begun.prepared.plan, family, 0).lora
        assert lora is not None and (lora.rank, lora.base_dtype) == (setups.ADAPTER_RANK, "int8")
        assert any(line.startswith(f"memory   {family}: ") for line in told)
    with pytest.raises(UserError, match="--lora-rank 0 trains all weights"):
        study(tmp_path, bases, base_dtype="int8", lora_rank=0)
    with pytest.raises(UserError, match="leave out --base-dtype"):
        study(tmp_path, {}, families=("autoregressive", "masked"), base_dtype="int8")


def test_all_weights_are_trained_from_a_small_checkpoint(base: Path, tmp_path: Path) -> None:
    found = run(study(tmp_path, find_bases([str(base)], ["autoregressive", "masked"])))
    assert found.complete and {start.lora_rank for start in found.starts} == {0}
    assert (tmp_path / "out" / found.training[1].model / "model.safetensors").is_file()


def test_checkpoints_of_different_tokenizers_read_the_same_rows(base: Path, tmp_path: Path) -> None:
    """The budget is equal in passes, limits are in tokens of each family, and per-token values are not compared."""
    other = llama(tmp_path / "coarse", 400)
    found = run(study(tmp_path, {"autoregressive": str(base), "masked": str(other)}))
    assert found.complete, found.missing
    fine, coarse = found.starts
    assert fine.tokens_per_token == 1 and coarse.tokens_per_token < 0.9
    assert coarse.length < fine.length and coarse.new_tokens < fine.new_tokens
    passes = [run.passes for run in found.training]
    assert max(passes) < 1.25 * min(passes) and found.training[1].tokens < 0.95 * found.training[0].tokens
    assert [row.rows for row in found.likelihood] == [found.likelihood[0].rows] * 2
    assert found.likelihood[1].against_baseline is not None  # bits per byte are compared, on the same rows
    assert all(line.compute is None for line in found.verdict.lines)
    (note,) = (note for note in found.caveats if "different tokenizers" in note)
    assert "passes" in note and "bits per byte" in note
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "can't be compared between them" in text


def test_a_pair_of_unequal_size_is_compared_and_told(base: Path, tmp_path: Path) -> None:
    other = llama(tmp_path / "wide", 300, intermediate_size=96)
    begun = runs.begin(study(tmp_path, {"autoregressive": str(base), "masked": str(other)}), lambda line: None)
    small, large = (start.parameters for start in begun.prepared.starts)
    assert large > 1.1 * small


@pytest.mark.parametrize(
    "family, reason",
    [
        ("edit", "can't be converted to family 'edit': This network predicts tokens"),
        ("latent", "can't be converted to family 'latent'"),
        ("embedding", "can't be converted to family 'embedding'"),
        ("distilled", "it learns from the checkpoint, which must be a masked model"),
    ],
)
def test_families_that_cannot_be_converted_are_refused_by_name(
    base: Path, tmp_path: Path, family: str, reason: str
) -> None:
    bases = find_bases([str(base)], ["autoregressive", family])
    with pytest.raises(UserError, match=reason) as caught:
        runs.begin(study(tmp_path, bases), lambda line: None)
    assert f"--from {family}=CHECKPOINT" in caught.value.remedy


def test_checkpoints_are_named_by_family_too(base: Path, tmp_path: Path) -> None:
    families = ["autoregressive", "masked"]
    named = find_bases([f"masked={base}", f"autoregressive={base}"], families)
    assert named == {family: str(base) for family in families}
    with pytest.raises(UserError, match="two checkpoints for family 'masked'"):
        find_bases([f"masked={base}", f"masked={base}"], families)
    with pytest.raises(UserError, match="--from masked=nowhere"):
        find_bases(["masked=nowhere"], families)
    with pytest.raises(UserError, match="no checkpoint to fine-tune for 'autoregressive'"):
        runs.begin(study(tmp_path, {"masked": str(base)}, families=("autoregressive", "masked")), lambda line: None)
    with pytest.raises(UserError, match="Adapters need checkpoints"):
        study(tmp_path, {}, families=("autoregressive", "masked"), lora_rank=4)


def test_a_conversion_leaves_room_for_what_its_family_needs(base: Path) -> None:
    """The last block of an answer must fit into the context of 96 positions."""
    assert Base.read(str(base), "autoregressive", {}).longest == 95
    assert Base.read(str(base), "block", {"block": 16}).longest == 81


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective": {"name": "align"}}, "--from"),
        ({"bases": True, "objective": {"name": "allign"}}, "align"),
        ({"bases": True, "objective": {"name": "preference"}}, "post-training"),
        ({"bases": True, "objective": {"name": "align", "weigth": 1}}, "weight"),
    ],
)
def test_an_objective_of_conversion_is_checked_first(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    families = ("autoregressive", "masked")
    bases = dict.fromkeys(families, "x") if fields.pop("bases", False) else {}
    with pytest.raises(UserError, match=words):
        study(tmp_path, bases, families=families, **fields)
