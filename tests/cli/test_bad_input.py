"""User mistakes: one line with the problem and its remedy, exit code 2, and no partial output."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.door import PAIRS, Answer, Redraft, environment, write

COLUMNS = ("--input", "question", "--target", "answer")
TINY = ("--preset", "toy", "--set", "tokenizer.vocab_size=300", "--set", "data.length=64", "--tokens", "500")


def refused(answer: Answer, *says: str) -> None:
    assert answer.code == 2, answer.err
    message = answer.err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert sum(line.startswith("error: ") for line in answer.err.splitlines()) == 1
    assert "Traceback" not in answer.err
    for part in says:
        assert part in message
    assert answer.out == ""


def untouched(out: Path) -> None:
    """Neither a model nor temporary files were left."""
    left = [path.name for path in out.rglob("*") if path.is_file()] if out.exists() else []
    assert not [
        name for name in left if name in ("config.json", "model.safetensors") or "tmp" in name or "writing" in name
    ]


def train(redraft: Redraft, data: Path, out: Path, *more: object) -> Answer:
    return redraft("train", "--data", data, "--out", out, *TINY, *(more or COLUMNS))


# data


def test_missing_file(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    answer = train(redraft, tmp_path / "pears.jsonl", tmp_path / "out")
    refused(answer, "pears.jsonl", "Did you mean 'pairs.jsonl'?")
    untouched(tmp_path / "out")


def test_empty_file(redraft: Redraft, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_bytes(b"")
    refused(train(redraft, tmp_path / "empty.jsonl", tmp_path / "out"), "empty.jsonl", "no rows")
    untouched(tmp_path / "out")


def test_wrong_column(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    answer = train(redraft, pairs, tmp_path / "out", "--input", "question", "--target", "anser")
    refused(answer, "anser", "Did you mean 'answer'?")
    untouched(tmp_path / "out")


def test_broken_utf8_line(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    lines = pairs.read_bytes().splitlines()
    lines[4] = lines[4].replace(b"the", b"\xff\xfe", 1)
    pairs.write_bytes(b"\n".join(lines) + b"\n")
    refused(train(redraft, pairs, tmp_path / "out"), "pairs.jsonl:5", "UTF-8", "--skip-bad-rows")
    untouched(tmp_path / "out")


def test_skipped_rows_are_counted_and_listed(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    pairs.write_text(pairs.read_text(encoding="utf-8") + "{broken\n", encoding="utf-8")
    answer = train(redraft, pairs, tmp_path / "out", *COLUMNS, "--skip-bad-rows")
    assert answer.code == 0
    assert "pairs.jsonl:121" in answer.err
    assert "bad rows left out: 1" in answer.err


def test_compare_and_evaluate_refuse_bad_data_too(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    for verb in (("compare", "--out", tmp_path / "out"), ("evaluate", "--model", "translate-en-de-masked")):
        refused(redraft(*verb, "--data", tmp_path / "nothing.csv"), "nothing.csv")
        refused(
            redraft(*verb, "--data", pairs, "--input", "questoin", "--target", "answer"), "Did you mean 'question'?"
        )


# options and names


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--step", "3"], "--steps"),
        (
            ["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--sampler", "confidance"],
            "'confidence'?",
        ),
        (["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--option", "blok=2"], "'block'?"),
        (["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--option", "block=two"], "block"),
        (["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--option", "block"], "KEY=VALUE"),
        (["generate", "--model", "translate-en-de-maskd", "--prompt", "x"], "Did you mean 'translate-en-de-masked'?"),
        (["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--device", "gpu"], "--device cpu"),
        (["evaluate", "--model", "translate-en-de-masked", "--data", "x", "--limit", "3"], "--rows"),
        (["train", "--out", "out", "--budget", "3"], "--minutes"),
        (["generate", "--prompt", "x"], "--model"),
        (
            ["generate", "--model", "translate-en-de-masked", "--prompt", "x", "--max-new-tokens", "many"],
            "--max-new-tokens",
        ),
        (["infill", "--model", "base-autoregressive", "--text", "a [[2]] b"], "diffusion model"),
        (["infill", "--model", "base-masked", "--text", "a b"], "[[3]]"),
        (["infill", "--model", "base-masked", "--text", "a [[x]] b"], "[[x]] is not a hole"),
        (["generate", "--model", "base-masked", "--prompt", "x", "--constraint", "regex=[0-9"], "backslash"),
        (["generate", "--model", "base-masked", "--prompt", "x", "--constraint", "json_schema=@no.json"], "without @"),
        (["generate", "--model", "base-masked", "--prompt", "x", "--adapter", "nowhere"], "'nowhere' does not exist"),
        (["generate", "--model", "nowhere", "--prompt", "x"], "no such folder"),
        (["convert", "nowhere", "out"], "no such folder"),
        (["generate", "--model", "translate-en-de-masked", "--prompt", ""], "The prompt is empty"),
        (["train", "--data", "x.jsonl", "--out", "out"], "budget"),
        (["train", "nowhere.toml", "--out", "out"], "nowhere.toml"),
    ],
)
def test_wrong_options_and_names(redraft: Redraft, arguments: list[str], says: str) -> None:
    refused(redraft(*arguments), says)


def test_unknown_recipe_option(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[data]\nsource = "{pairs}"\n[train]\ntokens = 500\nlearning_rate = 0.1\n', encoding="utf-8")
    refused(redraft("train", recipe, "--out", tmp_path / "out"), "learning_rate", "recipe.toml")


def test_steps_larger_than_the_text(redraft: Redraft) -> None:
    model = ("--model", "translate-en-de-masked", "--prompt", "the cat")
    answer = redraft("generate", *model, "--max-new-tokens", 8, "--steps", 50)
    refused(answer, "steps = 50", "--steps")


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_prompt_longer_than_the_context(redraft: Redraft, family: str) -> None:
    answer = redraft("generate", "--model", f"translate-en-de-{family}", "--prompt", "the cat sat " * 90)
    refused(answer, "256", "Shorten the prompt")


def test_a_wrong_preset_is_reported_before_the_data_are_read(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    answer = train(redraft, pairs, tmp_path / "out", *COLUMNS, "--preset", "1x")
    refused(answer, "'1x'", "Known: 100b, 125m, 1b, 1m")
    assert len(answer.err.splitlines()) == 1


# checkpoints


@pytest.mark.parametrize("option", ["--model", "--adapter"])
def test_a_folder_without_a_model(redraft: Redraft, tmp_path: Path, option: str) -> None:
    model = () if option == "--model" else ("--model", "base-masked")
    refused(redraft("generate", *model, option, tmp_path, "--prompt", "x"), str(tmp_path), "Give ")


def test_a_training_run_that_was_killed_early_must_be_finished(redraft: Redraft, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "recipe.toml").write_text("")
    refused(redraft("generate", "--model", tmp_path, "--prompt", "x"), "unfinished", "Run the same")


@pytest.fixture
def model(zoo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo / "translate-en-de-masked", tmp_path / "model"))


def test_truncated_weights(redraft: Redraft, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused(redraft("generate", "--model", model, "--prompt", "x"), "model.safetensors")


def test_corrupt_weights(redraft: Redraft, model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\x00" * 500)
    refused(redraft("generate", "--model", model, "--prompt", "x"), "model.safetensors")


def test_missing_weights(redraft: Redraft, model: Path) -> None:
    (model / "model.safetensors").unlink()
    refused(redraft("generate", "--model", model, "--prompt", "x"), "model.safetensors")


def test_corrupt_config(redraft: Redraft, model: Path) -> None:
    text = (model / "config.json").read_text(encoding="utf-8")
    (model / "config.json").write_text(text[: len(text) // 2], encoding="utf-8")
    refused(redraft("generate", "--model", model, "--prompt", "x"), "config.json")


def test_weights_of_another_shape(redraft: Redraft, model: Path) -> None:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    config["network"]["layers"] += 1
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(redraft("generate", "--model", model, "--prompt", "x"), "model.safetensors", "tensor")


def test_corrupt_tokenizer(redraft: Redraft, model: Path) -> None:
    (model / "tokenizer.json").write_text("{", encoding="utf-8")
    refused(redraft("generate", "--model", model, "--prompt", "x"), "tokenizer.json")


def test_damaged_training_checkpoint(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(redraft, pairs, out).code == 0
    (out / "train" / "result.json").unlink()  # as if killed before the end
    for state in (out / "train").glob("checkpoint-*/state.safetensors"):
        state.write_bytes(state.read_bytes()[:-100])
    refused(train(redraft, pairs, out), "state.safetensors", "Delete")


def test_another_run_in_the_folder(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert train(redraft, pairs, out).code == 0
    kept = (out / "model.safetensors").read_bytes()
    refused(train(redraft, pairs, out, *COLUMNS, "--lr", "0.5"), "lr")
    assert (out / "model.safetensors").read_bytes() == kept


# the disk


def in_a_process(*arguments: object, room: int | None = None, stdout: object = subprocess.PIPE) -> Answer:
    """Run a command whose files are limited to ``room`` bytes, as on a full disk."""

    def limit() -> None:
        if room is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = subprocess.run(
        [sys.executable, "-m", "redraft", *map(str, arguments)],
        stdout=stdout,  # type: ignore[call-overload]
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=limit,
        check=False,
    )
    return Answer(done.returncode, done.stdout or "", done.stderr)


def test_disk_full_while_training(pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = in_a_process("train", "--data", pairs, "--out", out, *TINY, *COLUMNS, room=60_000)
    refused(answer, "room" if "room" in answer.err else "space")
    untouched(out)
    again = in_a_process("train", "--data", pairs, "--out", out, *TINY, *COLUMNS)
    assert again.code == 0, again.err
    assert (out / "model.safetensors").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_disk_full_while_printing() -> None:
    with open("/dev/full", "w") as full:
        refused(in_a_process("models", "--json", stdout=full), "The disk is full")


def test_nothing_is_lost_when_a_model_cannot_be_saved(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    import redraft

    model = redraft.load(zoo / "base-masked")
    model.save(tmp_path / "kept")
    before = {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()}

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(redraft.UserError, match="no space left"):
        model.save(tmp_path / "kept")
    assert {path.name: path.read_bytes() for path in (tmp_path / "kept").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_json_errors_are_one_object(redraft: Redraft) -> None:
    answer = redraft("generate", "--model", "nobody", "--prompt", "x", "--json")
    assert answer.code == 2
    assert "nobody" in answer.json["error"]["what"]
    assert answer.err.startswith("error: ")


def test_too_few_rows_are_refused(redraft: Redraft, tmp_path: Path) -> None:
    few = write(tmp_path / "few.jsonl", PAIRS[:1])
    answer = train(redraft, few, tmp_path / "out")
    refused(answer, "few.jsonl")
