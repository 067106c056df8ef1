"""``redraft finetune`` with adapters and into other families, and commands on the resulting models."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.door import Redraft

SMALL = ("--tokens", "900", "--set", "train.batch_tokens=512", "--set", "train.threads=1", "--set", "data.length=100")
COLUMNS = ("--input", "question", "--target", "answer")


def test_an_adapter_from_training_to_a_merged_model(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    base, out = "base-masked", tmp_path / "adapter"
    given = ("--data", pairs, *COLUMNS, *SMALL, "--lora-rank", "2", "--lora-targets", "q_proj,v_proj")
    made = redraft("finetune", "--from", base, *given, "--out", out, "--json")
    assert made.code == 0, made.err
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 4, ["q_proj", "v_proj"])
    assert not (out / "model.safetensors").exists()
    assert redraft("convert", base, tmp_path / "whole", "--adapter", out, "--json").code == 0
    said = [
        redraft("generate", *model, "--prompt", "the cat", "--max-new-tokens", "6", "--json").json
        for model in (("--model", base, "--adapter", out), ("--model", out), ("--model", tmp_path / "whole"))
    ]
    assert len({(one["text"], one["nfe"]) for one in said}) == 1 and said[0]["adapter"] == str(out)
    served = redraft("serve", "--model", out)
    assert served.code == 2 and "adapter" in served.err


def test_into_another_family_in_one_command(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    given = ("--data", pairs, *COLUMNS, *SMALL, "--family", "masked", "--curriculum", "blocks")
    made = redraft("finetune", "--from", "translate-en-de-autoregressive", *given, "--out", tmp_path / "m", "--json")
    assert made.code == 0, made.err
    described = json.loads((tmp_path / "m" / "config.json").read_text())
    assert described["family"]["name"] == "masked" and described["family"]["shift"] == 1


def test_a_base_passes_its_generation_settings_on(redraft: Redraft, zoo: Path, pairs: Path, tmp_path: Path) -> None:
    import shutil

    base, file = tmp_path / "base", "generation_config.json"
    shutil.copytree(zoo / "translate-en-de-masked", base)
    own = {"sampler": "confidence", "steps": 4, "candidates": 3, "max_new_tokens": 8}
    (base / file).write_text(json.dumps(own))
    text = tmp_path / "notes.jsonl"
    text.write_text("".join(json.dumps({"text": json.loads(line)["answer"]}) + "\n" for line in pairs.open()))
    distilled = ("--data", pairs, *COLUMNS, "--set", "family.name=distilled", "--set", "family.teacher_steps=2")
    for name, given, kept in (
        ("distilled", distilled, own),
        ("plain", ("--data", text), {"max_new_tokens": 8}),  # the others were chosen for answers
    ):
        made = redraft("finetune", "--from", base, *given, *SMALL, "--out", tmp_path / name, "--json")
        assert made.code == 0, made.err
        assert json.loads((tmp_path / name / file).read_text()) == kept
        said = redraft("generate", "--model", tmp_path / name, "--prompt", "the cat", "--json")
        assert said.code == 0 and said.json["max_new_tokens"] == 8
        assert (said.json["steps"] == 4) is (kept == own)


def test_mistakes_are_explained(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    for words, says in (
        (("--lora-rank", "2", "--lora-targets", "q_prj"), "Did you mean 'q_proj'?"),
        (("--curriculum", "aneal"), "Did you mean 'anneal'?"),
        (("--family", "mask"), "Did you mean 'masked'?"),
    ):
        given = ("--data", pairs, *COLUMNS, *SMALL, *words)
        answer = redraft("finetune", "--from", "base-autoregressive", *given, "--out", tmp_path / "m")
        assert answer.code == 2 and says in answer.err, answer.err
    answer = redraft("generate", "--model", "base-masked", "--adapter", tmp_path, "--prompt", "a")
    assert answer.code == 2 and "adapter" in answer.err or "config.json" in answer.err


def test_a_dry_run_prints_the_memory_and_writes_nothing(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    given = ("--data", pairs, *COLUMNS, *SMALL, "--lora-rank", "2", "--out", tmp_path / "run", "--dry-run", "--json")
    found = redraft("finetune", "--from", "translate-en-de-masked", *given)
    assert found.code == 0, found.err
    assert "weights" in found.err and "largest batch" in found.err
    assert found.json["memory"]["total"] > found.json["memory"]["weights"] > 0
    assert not (tmp_path / "run").exists()


def test_settings_of_an_adapter_need_one(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    given = ("--data", pairs, *COLUMNS, "--base-dtype", "int8", "--out", tmp_path / "run")
    found = redraft("finetune", "--from", "translate-en-de-masked", *given)
    assert found.code == 2 and "--base-dtype needs an adapter" in found.err


def test_preferences_and_rewards(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in pairs.open()][:20]
    data = tmp_path / "rows.jsonl"
    lines = [{"prompt": row["question"], "chosen": row["answer"], "rejected": row["question"]} for row in rows]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = ("--from", "translate-en-de-masked", "--data", data, "--set", "data.fractions=[1.0, 0.0, 0.0]")
    small = ("--passes", "0.1", "--set", "train.threads=1", "--set", "train.batch_tokens=1500", "--json")
    made = redraft("finetune", *given, "--objective", "preference", *small, "--out", tmp_path / "preferred")
    assert made.code == 0 and "accuracy 0.5" in made.err, made.err
    rewarded = (*given, "--input", "prompt", "--target", "chosen", "--objective", "reward")
    tokens = ("--set", "objective.generation.max_new_tokens=12", "--set", "objective.group=4")
    made = redraft("finetune", *rewarded, "--reward", "chrf", *tokens, *small, "--out", tmp_path / "rewarded")
    assert made.code == 0 and "identical" in made.err and made.json["steps"] >= 1, made.err
    assert redraft("generate", "--model", tmp_path / "rewarded", "--prompt", "the cat", "--json").code == 0


def test_wrong_options_of_post_training_are_errors_for_people(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    given = ("finetune", "--from", "translate-en-de-masked", "--data", pairs, "--out", tmp_path / "m")
    for more, message in (
        (("--objective", "rewards"), "Did you mean 'reward'"),
        (("--objective", "reward"), "Add --reward NAME"),
        (("--reward", "exact"), "Add --objective reward"),
        (("--objective", "reward", "--reward", "exakt"), "Did you mean 'exact'"),
        (("--objective", "preference", "--set", "objective.betta=1"), "Did you mean 'beta'"),
        (("--objective", "preference"), "no column 'chosen'"),
    ):
        found = redraft(*given, *more)
        assert found.code == 2 and message in found.err, found.err
