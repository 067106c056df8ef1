"""A whole study with tiny models: trained, measured, judged, interrupted, continued, and reported again."""

from __future__ import annotations

import json
import random
import shutil
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft import runtime
from redraft.cli import compare as compare_cli
from redraft.compare import job, time_budget, workbench
from redraft.compare import run as runs
from redraft.compare.record import Record
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.executors.base import NO_TIME
from redraft.files import folder_of_its_own
from redraft.loading import load

WORDS = {"one": "eins", "two": "zwei", "red": "rot", "dog": "Hund", "sees": "sieht", "house": "Haus"}


def rows(count: int) -> str:
    draw = random.Random(0)
    lines = []
    for i in range(count):
        words = draw.choices(list(WORDS), k=draw.randint(2, 5))
        pair = {"english": f"{i} {' '.join(words)}", "german": f"{i} {' '.join(WORDS[w] for w in words)}"}
        lines.append(json.dumps(pair))
    return "\n".join(lines) + "\n"


def study(folder: Path, **fields: Any) -> Study:
    given: dict[str, Any] = {
        "data": str(folder / "mine.jsonl"),
        "input": "english",
        "target": "german",
        "budget_tokens": 4000,
        "preset": "toy",
        "steps": (2,),
        "candidates": (1,),
        "test_rows": 12,
        "validation_rows": 6,
        "timed_calls": 2,
        "batch_sizes": (1, 4),
        "train": {"validation_rows": 16, "validate_every": 0, "threads": 1},
        "device": "cpu",
        "out": str(folder / "out"),
    }
    return Study(**{**given, **fields})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record, list[str]]:
    folder = tmp_path_factory.mktemp("study")
    (folder / "mine.jsonl").write_text(rows(160), encoding="utf-8")
    told: list[str] = []
    return folder, runs.run(study(folder), told.append, "redraft compare"), told


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "out" / "cells").iterdir()}


def test_a_study_measures_both_families_on_equal_terms(finished: tuple[Path, Record, list[str]]) -> None:
    folder, found, told = finished
    first, second = found.training
    assert (first.family, second.family) == ("autoregressive", "masked")
    assert abs(first.parameters / second.parameters - 1) <= 0.01
    assert abs(first.tokens / second.tokens - 1) <= 0.05  # a batch more or less
    assert found.complete and found.missing == ()
    assert {row.id for row in found.settings} == {setting.id for setting in found.plan.settings}
    for row in found.settings:
        assert row.work is not None and row.work.nfe >= 1
        assert row.work.flops_per_token is not None and row.work.flops_per_token > 0
        assert [s.batch for s in row.speed] == [1, 4]
        assert 0 <= row.quality["bleu"].value <= 100
    assert [e.is_bound for e in found.likelihood] == [False, True]
    for name in ("results.json", "report.md", "report.html"):
        assert (folder / "out" / name).stat().st_size > 1000
    assert Record.load(folder / "out" / "results.json") == found
    assert any(line.startswith("task ") for line in told)


def test_a_finished_study_is_not_computed_again(finished: tuple[Path, Record, list[str]]) -> None:
    folder, found, _ = finished
    before = stamps(folder)
    again = runs.run(study(folder, price_per_hour=3.0), lambda line: None)
    assert stamps(folder) == before
    for one, other in zip(found.settings, again.settings, strict=True):
        assert one.quality == other.quality
        assert (other.speed[0].cost_per_thousand or 0) > 0  # a price needs no measurement


def test_all_models_of_a_study_are_trained_in_one_type_of_numbers(
    finished: tuple[Path, Record, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which type is faster is measured, and another measurement may say otherwise: the first answer holds."""
    folder, _, _ = finished
    used = {path.read_text() for path in (folder / "out" / "models").glob("*/train/recipe.toml")}
    types = {tomllib.loads(text)["train"]["dtype"] for text in used}
    assert len(used) > 1 and len(types) == 1 and types < {"float32", "bfloat16"}
    monkeypatch.setattr(runtime, "bfloat16_is_faster", lambda where: types == {"float32"})
    bench = runs.begin(study(folder), lambda line: None).bench
    assert bench is not None and {bench.dtype} == types


def test_an_interrupted_study_computes_only_what_is_missing(
    finished: tuple[Path, Record, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, found, _ = finished
    before = stamps(folder)
    victim = next(
        path
        for path in (folder / "out" / "cells").iterdir()
        if json.loads(path.read_text(encoding="utf-8"))["key"]["kind"] == "texts"
    )
    victim.unlink()
    monkeypatch.setattr(workbench, "train", None)  # training again would fail
    again = runs.run(study(folder), lambda line: None)
    after = stamps(folder)
    assert [name for name in after if after[name] != before[name]] == [victim.name]
    assert [s.quality for s in again.settings] == [s.quality for s in found.settings]


def test_a_piece_that_fails_is_reported_and_the_rest_stands(
    finished: tuple[Path, Record, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = finished
    real = workbench.generate_texts

    def failing(model: Any, prompts: Any, setting: Any, *rest: Any) -> Any:
        if setting.steps == 3:
            raise UserError("three steps are refused.", "Take two.")
        return real(model, prompts, setting, *rest)

    monkeypatch.setattr(workbench, "generate_texts", failing)
    found = runs.run(study(folder, steps=(2, 3)), lambda line: None)
    assert any("three steps are refused" in m.why for m in found.missing)
    assert not found.complete
    assert {row.decoding.steps for row in found.settings} == {None, 2}
    assert "three steps are refused" in (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_when_the_time_is_up_what_is_optional_is_left_out_and_told(
    finished: tuple[Path, Record, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, _ = finished
    monkeypatch.setattr(workbench, "train", None)  # training again would fail
    monkeypatch.setattr(time_budget, "deadline", lambda study, begun: begun)
    found = runs.run(study(folder, steps=(1, 4, 5)), lambda line: None)
    late = {m.what for m in found.missing if m.why == NO_TIME}
    assert [what for what in late if what.startswith("validation")] == ["validation: masked, 4 steps, seed 0"]
    assert {row.decoding.steps for row in found.settings} == {None, 1, 5}
    assert all(row.validation is not None for row in found.settings)
    assert {row.family for row in found.settings if row.chosen} == {"autoregressive", "masked"}
    assert NO_TIME in (folder / "out" / "report.md").read_text(encoding="utf-8")


def test_the_size_is_one_at_which_all_families_are_equal(
    finished: tuple[Path, Record, list[str]],
) -> None:
    """A small budget asks for the smallest preset, at which the autoencoder of a latent model is too large a part."""
    folder, _, _ = finished
    families = ("autoregressive", "latent")
    begun = runs.begin(study(folder, families=families, preset=""), lambda line: None)
    assert begun.prepared.plan.preset == "3m"
    with pytest.raises(UserError, match="--preset 3m or"):
        runs.begin(study(folder, families=families, preset="1m"), lambda line: None)


def test_a_constraint_is_measured_with_and_without(
    finished: tuple[Path, Record, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chosen settings only, on the same models; nothing that was measured before is touched."""
    folder, found, _ = finished
    before = stamps(folder)
    monkeypatch.setattr(workbench, "train", None)  # training again would fail
    told: list[str] = []
    under = runs.run(study(folder, constraint={"regex": "[0-9]+ [a-z ]{3,20}"}), told.append)
    after = stamps(folder)
    assert {name: after[name] for name in before} == before
    assert found.constraint_study is None and under.complete
    control = under.constraint_study
    assert control is not None
    assert any(f"{control.references:.0f} % of the test references" in line for line in told)
    chosen = {row.id for row in under.settings if row.chosen}
    assert {row.setting for row in control.settings} == chosen
    assert {row.family for row in control.settings} == {"autoregressive", "masked"}
    for row in control.settings:
        assert row.valid.under.value == 100 and 0 <= row.valid.without.value <= 100
        free = next(one for one in under.settings if one.id == row.setting)
        assert row.quality.without.value == free.quality[under.task.primary].value
        assert row.change is not None and row.change.difference == pytest.approx(
            row.quality.under.value - row.quality.without.value
        )
        assert [s.batch for s in row.speed] == [1, 4] and all(s.slowdown.ratio > 0 for s in row.speed)
        assert (row.against_baseline is None) == (row.setting == under.baseline.setting)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Constrained decoding" in page and "[0-9]+ [a-z ]{3,20}" in page
    assert "## Constrained decoding" in (folder / "out" / "report.md").read_text(encoding="utf-8")


def test_a_constraint_that_nothing_can_satisfy_is_told_and_the_study_stands(
    finished: tuple[Path, Record, list[str]],
) -> None:
    folder, _, _ = finished
    found = runs.run(study(folder, constraint={"length": "900 characters"}), lambda line: None)
    assert found.constraint_study is not None and found.constraint_study.settings == ()
    assert any("constrained" in m.what for m in found.missing)
    assert found.settings and "<h2>Constrained" not in (folder / "out" / "report.html").read_text(encoding="utf-8")
    with pytest.raises(UserError):
        study(folder, constraint={"regex": "("})


def test_of_several_dropouts_each_family_keeps_its_best_on_validation_rows(
    finished: tuple[Path, Record, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What validation says is made up here: autoregressive is better at 0.3, masked at 0.0."""
    (tmp_path / "mine.jsonl").write_text(rows(160), encoding="utf-8")
    real, loaded = workbench.train, []

    def trained(recipe: Any, folder: Path, **rest: Any) -> Any:
        result = real(recipe, folder, **rest)
        assert result.validation is not None
        good = recipe.train.dropout == {"autoregressive": 0.3, "masked": 0.0}[recipe.family["name"]]
        return replace(result, validation={**result.validation, "bits_per_byte": 1.0 if good else 2.0})

    def watched(folder: Path, *how: Any) -> Any:
        loaded.append(folder.name)
        return load(folder, *how)

    monkeypatch.setattr(workbench, "train", trained)
    monkeypatch.setattr(workbench, "load", watched)
    found = runs.run(study(tmp_path, dropouts=(0.0, 0.3)), lambda line: None)
    assert found.complete and len(found.training) == 4
    kept = {run.family: run for run in found.training if run.kept}
    assert {name: run.dropout for name, run in kept.items()} == {"autoregressive": 0.3, "masked": 0.0}
    assert set(loaded) == {Path(run.model).name for run in kept.values()}  # the others write nothing
    (note,) = (note for note in found.caveats if "dropout" in note)
    total = sum(run.tokens for run in found.training)
    assert f"{total:,} in all" in note and "autoregressive 0.3, masked 0" in note
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert text.count("(not kept)") == 4  # for each a row of the table and a point of the learning curves
    monkeypatch.setattr(workbench, "train", None)
    again = runs.run(study(tmp_path, dropouts=(0.0, 0.3)), lambda line: None)
    assert again.settings == found.settings


def test_too_little_data_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(rows(4), encoding="utf-8")
    with pytest.raises(UserError):
        runs.run(study(tmp_path), lambda line: None)


def test_families_of_unequal_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(rows(160), encoding="utf-8")
    with pytest.raises(UserError, match="1 %"):
        runs.run(study(tmp_path, family_options={"masked": {"timed": True}}), lambda line: None)


def test_fine_tuning_goes_on_from_public_checkpoints(tmp_path: Path) -> None:
    """A Mistral against a BERT of the same tokenizer, found by their folders' names alone."""
    import tokenizers
    from transformers import BertConfig, BertForMaskedLM, MistralConfig, MistralForCausalLM

    from redraft.compare.checkpoints import find_bases

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [*special, *WORDS, *WORDS.values(), *map(str, range(60))]
    vocabulary = {word: i for i, word in enumerate(words)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in special])
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    shape |= {"vocab_size": len(words), "max_position_embeddings": 64}
    more = {"num_key_value_heads": 2, "sliding_window": None, "bos_token_id": 2, "eos_token_id": 3}
    more |= {"tie_word_embeddings": True}
    torch.manual_seed(0)  # some random weights generate nothing but end-of-text, for which no work per token exists
    BertForMaskedLM(BertConfig(**shape)).save_pretrained(tmp_path / "bert")
    MistralForCausalLM(MistralConfig(**shape, **more)).save_pretrained(tmp_path / "mistral")
    for name in ("bert", "mistral"):
        backend.save(str(tmp_path / name / "tokenizer.json"))
    (tmp_path / "mine.jsonl").write_text(rows(60), encoding="utf-8")
    named = find_bases([str(tmp_path / "mistral"), str(tmp_path / "bert")], ["autoregressive", "masked"])
    assert named == {"autoregressive": str(tmp_path / "mistral"), "masked": str(tmp_path / "bert")}
    few: dict[str, Any] = {"test_rows": 3, "validation_rows": 3, "timed_calls": 2, "batch_sizes": (1,)}
    found = runs.run(study(tmp_path, bases=named, preset="", budget_tokens=600, **few), lambda line: None)
    assert found.complete and {run.family for run in found.training} == set(named)
    assert all(row.work is not None and row.work.flops_per_token for row in found.settings)


def test_fine_tuning_goes_on_from_a_pair_of_checkpoints(
    finished: tuple[Path, Record, list[str]], tmp_path: Path
) -> None:
    folder, found, _ = finished
    (tmp_path / "mine.jsonl").write_text(rows(120), encoding="utf-8")
    bases = {run.family: str(folder / "out" / run.model) for run in found.training}
    tuned = runs.run(study(tmp_path, bases=bases, preset="", budget_tokens=1500), lambda line: None)
    assert tuned.complete and tuned.study.bases == bases
    for before, after in zip(found.training, tuned.training, strict=True):
        assert after.parameters == before.parameters
        assert (
            after.validation is not None
            and before.validation is not None
            and after.validation.bits_per_byte < before.validation.bits_per_byte + 0.2
        )  # it did not start anew
    with pytest.raises(UserError, match="no checkpoint to fine-tune for 'masked'"):
        runs.run(study(tmp_path, bases={"autoregressive": bases["autoregressive"]}), lambda line: None)
    swapped = {"autoregressive": bases["masked"], "masked": bases["autoregressive"]}
    with pytest.raises(UserError, match="of family 'masked'"):
        runs.run(study(tmp_path, bases=swapped), lambda line: None)


def test_the_report_is_made_again_from_finished_pieces_alone(
    finished: tuple[Path, Record, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither data nor models are needed, and the record is the same."""
    folder = finished[0]
    found = runs.run(study(folder), lambda line: None, "redraft compare")
    copied = tmp_path / "copied"
    (copied / "cells").mkdir(parents=True)
    for name in ("study.json", *(f"cells/{path.name}" for path in (folder / "out" / "cells").iterdir())):
        shutil.copy(folder / "out" / name, copied / name)
    monkeypatch.setattr(workbench, "train", None)  # computing anything would fail
    monkeypatch.setattr(workbench, "load", None)
    again = runs.render(copied)
    assert replace(again, created=found.created) == found
    for name in runs.FILES:
        assert (copied / name).stat().st_size > 1000


def test_the_report_of_an_unfinished_study_lists_what_is_missing(
    finished: tuple[Path, Record, list[str]], tmp_path: Path
) -> None:
    folder = finished[0]
    runs.begin(study(folder), lambda line: None)
    (tmp_path / "cells").mkdir()
    shutil.copy(folder / "out" / "study.json", tmp_path / "study.json")
    with pytest.raises(UserError, match="no finished pieces"):
        runs.render(tmp_path)
    for path in (folder / "out" / "cells").iterdir():
        if json.loads(path.read_text(encoding="utf-8"))["key"]["kind"] in ("train", "likelihood", "plan"):
            shutil.copy(path, tmp_path / "cells" / path.name)
    found = runs.render(tmp_path)
    assert len(found.training) == len(found.likelihood) == 2 and found.settings == ()
    assert found.missing and {one.why for one in found.missing} == {job.NOT_COMPUTED}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(one.what in text for one in found.missing)


def test_a_folder_without_a_study_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not the folder of a study"):
        runs.render(tmp_path)
    (tmp_path / "study.json").write_text('{"schema_version": 1}')
    with pytest.raises(UserError, match="schema version 1"):
        runs.render(tmp_path)


# ---- folders of studies


def test_two_processes_do_not_run_a_study_in_one_folder(finished: tuple[Path, Record, list[str]]) -> None:
    folder = finished[0]
    with (
        folder_of_its_own(folder / "out", "held"),
        pytest.raises(UserError, match="Another process is running a study"),
    ):
        runs.run(study(folder), lambda line: None)


def test_a_moved_study_with_lost_and_changed_pieces_goes_on(
    finished: tuple[Path, Record, list[str]], tmp_path: Path
) -> None:
    """The cell of a training is deleted, and the texts of another one are changed: both are found missing."""
    shutil.copytree(finished[0], tmp_path / "moved")
    folder = tmp_path / "moved"
    cells = {path: json.loads(path.read_text()) for path in (folder / "out" / "cells").iterdir()}
    settings = [asdict(setting) for setting in finished[1].plan.settings]  # others are of other tests' studies
    own = {path: one["key"] for path, one in cells.items() if one["key"].get("setting", settings[0]) in settings}
    kind = {key["kind"]: path for path, key in own.items()}
    kind["train"].unlink()
    changed = cells[kind["texts"]]
    changed["value"] = {"texts": [], "x": 1}
    kind["texts"].write_text(json.dumps(changed))
    (folder / "out" / "tokenizer" / "made_from.json").write_text("{")
    told: list[str] = []
    found = runs.run(study(folder), told.append)
    assert found.complete and found.training[0].steps == finished[1].training[0].steps
    again = {path: json.loads(path.read_text()) for path in (folder / "out" / "cells").iterdir()}
    assert again.keys() == cells.keys()
    assert again[kind["texts"]]["value"]["texts"]


def test_a_piece_that_is_a_folder_is_named(finished: tuple[Path, Record, list[str]], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "broken")
    cells = (tmp_path / "broken" / "out" / "cells").iterdir()
    cell = next(path for path in cells if json.loads(path.read_text())["key"]["kind"] == "train")
    cell.unlink()
    cell.mkdir()
    with pytest.raises(UserError, match="Delete it"):
        runs.run(study(tmp_path / "broken"), lambda line: None)


def test_the_report_of_another_study_is_kept(finished: tuple[Path, Record, list[str]], tmp_path: Path) -> None:
    shutil.copytree(finished[0], tmp_path / "two")
    out, told = tmp_path / "two" / "out", list[str]()

    def kept() -> list[str]:
        return sorted(path.name for path in (out / "older").glob("*"))

    runs.run(study(tmp_path / "two"), told.append)
    before, older = json.loads((out / "results.json").read_text()), kept()
    runs.run(study(tmp_path / "two", price_per_hour=2.0), told.append)
    assert kept() == older  # the same study
    told.clear()
    runs.run(study(tmp_path / "two", test_rows=10), told.append)
    (new,) = set(kept()) - {*older}
    found = json.loads((out / "older" / new / "results.json").read_text())
    assert [one["id"] for one in found["settings"]] == [one["id"] for one in before["settings"]]
    assert any("older" in line for line in told)
    assert runs.render(out).plan.test_rows == 10


def test_a_study_whose_training_fails_does_not_exit_with_0(
    finished: tuple[Path, Record, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise UserError("The disk has no space left.", "Free some space.")

    shutil.copytree(finished[0], tmp_path / "failing")
    shutil.rmtree(tmp_path / "failing" / "out" / "cells")
    monkeypatch.setattr(workbench, "train", full)
    assert compare_cli.run(study(tmp_path / "failing"), as_json=True)["ok"] is False
    monkeypatch.undo()
    assert compare_cli.run(study(finished[0]), as_json=True)["ok"] is True
