"""Every verb on tiny untrained models: the output that people and scripts rely on."""

from __future__ import annotations

import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.door import PAIRS, Redraft, environment, write

COLUMNS = ("--input", "question", "--target", "answer")
TINY = ("--preset", "toy", "--set", "tokenizer.vocab_size=300", "--set", "data.length=64")
MODEL = ("--model", "translate-en-de-masked")
PROMPT = ("--prompt", "the cat sat on a mat", "--max-new-tokens", 12)


def verbs() -> tuple[str, ...]:
    from redraft.cli._verbs import verb_names

    return verb_names()


# help


def test_help_names_every_verb(redraft: Redraft) -> None:
    answer = redraft("--help")
    assert answer.code == 0
    assert all(f"\n  {verb} " in answer.out for verb in verbs())
    assert redraft().out == answer.out


@pytest.mark.parametrize("verb", verbs())
def test_help_of_every_verb(redraft: Redraft, verb: str) -> None:
    answer = redraft(verb, "--help")
    assert answer.code == 0
    for part in ("Examples:", f"redraft {verb}", "--json", "--seed", "--device"):
        assert part in answer.out


@pytest.mark.parametrize("verb", verbs())
def test_help_is_plain_text(redraft: Redraft, verb: str) -> None:
    """The help has no markup and no docstring sections, and it explains every option."""
    shown = redraft(verb, "--help").out
    assert not re.search(r"\\b|[\x00-\x08]|``|Raises:|Args:", shown)
    options = re.findall(r"^  --\S+[^\n]*\n?(?:   [^\n]*\n)*", shown, re.MULTILINE)
    assert options and all(re.search(r"[A-Za-z.]", re.sub(r"^  --\S+( \S+)?", "", text)) for text in options)


def test_every_file_declares_its_verb() -> None:
    from redraft.cli._verbs import find_verbs

    found = find_verbs()
    assert {one.name for one in found} == set(verbs())
    assert len({one.order for one in found}) == len(found), "the order of the help is unambiguous"
    assert {one.name for one in found if one.resumes} >= {"train", "compare", "tune"}


def test_generation_settings_are_echoed_as_they_were_used(redraft: Redraft) -> None:
    from redraft.options import declared
    from redraft.settings import Settings

    found = redraft("generate", *MODEL, *PROMPT, "--seed", 3, "--temperature", 0.5, "--json").json
    assert set(declared(Settings, "cli")) <= set(found)
    assert (found["seed"], found["temperature"], found["max_new_tokens"]) == (3, 0.5, 12)
    assert found["sampler"] == "confidence" and found["steps"] == 12 and found["options"]["order"]
    again = ["generate", *MODEL, "--prompt", PROMPT[1], "--json"]
    for name, one in declared(Settings, "cli").items():
        if isinstance(found[name], int | float | str):
            again += [one.option, found[name]]
    assert redraft(*again).json["text"] == found["text"]


def test_the_settings_are_listed(redraft: Redraft) -> None:
    from redraft.options import table
    from redraft.settings import Settings

    assert redraft("models", "--settings").out.strip() == table(Settings)
    rows = redraft("models", "--settings", "--json").json["settings"]
    assert rows[0]["setting"] == "max_new_tokens" and rows[0]["option"] == "--max-new-tokens"


def test_version(redraft: Redraft) -> None:
    import redraft as package

    assert redraft("--version").out == f"redraft {package.__version__}\n"


# generate


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_generate_prints_the_fields_that_scripts_rely_on(redraft: Redraft, family: str) -> None:
    found = redraft("generate", "--model", f"translate-en-de-{family}", *PROMPT, "--json").json
    promised = {"text", "new_tokens", "nfe", "seconds", "tokens_per_second", "sampler"}
    assert promised <= set(found)
    assert 0 < found["new_tokens"] <= 12
    assert found["nfe"] > 0
    assert found["tokens_per_second"] > 0
    assert found["family"] == family


def test_generate_with_sampler_options(redraft: Redraft) -> None:
    options = ("--steps", 3, "--sampler", "confidence", "--seed", 5, "--option", "order=margin", "--temperature", 0.5)
    found = redraft("generate", "--model", "base-masked", *PROMPT, *options, "--json").json
    assert found["sampler"] == "confidence"
    assert found["steps"] == 3 and {"order": "margin", "block": 0}.items() <= found["options"].items()
    assert found["nfe"] <= 3


def test_the_seed_determines_the_text(redraft: Redraft) -> None:
    def text(seed: int) -> str:
        return str(
            redraft("generate", "--model", "base-masked", *PROMPT, "--temperature", 1, "--seed", seed, "--json").json[
                "text"
            ]
        )

    assert text(3) == text(3)
    assert len({text(seed) for seed in range(4)}) > 1


def test_a_pipe_receives_the_plain_text(redraft: Redraft) -> None:
    expected = redraft("generate", *MODEL, *PROMPT, "--json").json["text"]
    assert redraft("generate", *MODEL, *PROMPT).out == f"{expected}\n"


def test_prompt_from_stdin(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = redraft("generate", *MODEL, *PROMPT, "--json").json["text"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat sat on a mat\n"))
    assert redraft("generate", *MODEL, "--prompt", "-", "--max-new-tokens", 12, "--json").json["text"] == expected


def test_the_animation_ends_in_the_same_text(zoo: Path) -> None:
    from rich.console import Console

    import redraft as package
    from redraft.cli._animation import watch

    model = package.load(zoo / "base-masked")
    settings = model.settings(max_new_tokens=12, steps=4)
    drafting, screen = model.start(["the cat"], settings), io.StringIO()
    watch(drafting, Console(file=screen, force_terminal=True, width=200), pace=0.0)
    plain = model.generate("the cat", max_new_tokens=12, steps=4)[0]
    assert drafting.results()[0].text == plain.text
    frames = screen.getvalue().split("forward passes")
    assert all(f"{passes} forward passes" in screen.getvalue() for passes in range(5))
    assert "░" in frames[0]
    assert "░" not in frames[-2].splitlines()[-2]


def test_frames_join_the_parts_of_a_character() -> None:
    from redraft.data.tokenizer import Tokenizer
    from redraft.trace.marks import Mark, pieces
    from redraft.types import SEALED

    tokenizer = Tokenizer.bytes()
    ids = tokenizer.encode("aß€")
    assert len(ids) == 6
    marks = [Mark(token, sure, 1, 1) for token, sure in zip(ids, [0.9, 0.8, 0.4, 0.7, 0.6, 0.5], strict=True)]
    shown = [(piece.text, piece.probability) for piece in pieces(ids, [SEALED] * 6, marks, tokenizer)]
    assert shown == [("a", 0.9), ("ß", 0.4), ("€", 0.5)]


# infill


def test_infill_keeps_the_given_text(redraft: Redraft) -> None:
    found = redraft(
        "infill", "--model", "base-masked", "--text", "the [[3]] sat on [[ ]] mat", "--hole", 2, "--json"
    ).json
    assert found["text"].startswith("the ")
    assert found["text"].endswith(" mat")
    assert " sat on " in found["text"]
    assert found["nfe"] > 0


# train, finetune, evaluate


def test_train_then_finetune_then_evaluate(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    out, tuned = tmp_path / "out", tmp_path / "tuned"
    train = ("train", "--data", pairs, *COLUMNS, *TINY, "--tokens", 2000, "--out", out, "--seed", 3, "--json")
    first = redraft(*train)
    assert first.code == 0
    assert first.json["validation"]["is_bound"] is True
    assert first.json["tokens"] >= 2000
    assert "train: " in first.err  # the data report
    assert redraft(*train).json["steps"] == first.json["steps"]  # finished already

    finetune = ("finetune", "--from", out, "--data", pairs, *COLUMNS, "--tokens", 500)  # of a context of 256
    assert redraft(*finetune, "--out", tuned, "--json").code == 0

    texts = tmp_path / "texts.jsonl"
    evaluate = ("evaluate", "--model", tuned, "--data", pairs, *COLUMNS, "--rows", 20, "--max-new-tokens", 12)
    found = redraft(*evaluate, "--out", texts, "--json").json
    assert found["likelihood"]["is_bound"] is True
    assert found["likelihood"]["bits_per_byte_error"] > 0
    assert all(metric["low"] <= metric["value"] <= metric["high"] for metric in found["metrics"].values())
    assert found["inputs"] == len(texts.read_text(encoding="utf-8").splitlines()) == 20


def test_finetuning_keeps_the_family(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    more = ("--data", pairs, *COLUMNS, "--set", "data.length=64", "--tokens", 300, "--out", tmp_path / "out", "--json")
    assert redraft("finetune", "--from", "translate-en-de-autoregressive", *more).code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["family"]["name"] == "autoregressive"


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_evaluate_plain_text(redraft: Redraft, tmp_path: Path, family: str) -> None:
    text = tmp_path / "notes.txt"
    text.write_text(" ".join(pair["question"] for pair in PAIRS), encoding="utf-8")
    found = redraft("evaluate", "--model", f"base-{family}", "--data", text, "--max-new-tokens", 8, "--json").json
    assert found["likelihood"]["is_bound"] is (family == "masked")
    assert found["temperature"] == 1.0


def test_short_plain_texts_are_cut_in_the_middle(redraft: Redraft, tmp_path: Path) -> None:
    texts = [f"{pair['answer']} {pair['question']}" for pair in PAIRS[:6]]
    short = write(tmp_path / "short.jsonl", [{"text": text} for text in (*texts, "a")])
    given = ("--model", "base-masked", "--data", short, "--max-new-tokens", 4, "--out", tmp_path / "texts", "--json")
    found = redraft("evaluate", *given).json
    assert found["inputs"] == 6  # one letter can't be cut
    for line, text in zip((tmp_path / "texts").read_text().splitlines(), texts, strict=True):
        row = json.loads(line)
        assert row["prompt"] and text.startswith(row["prompt"] + row["references"][0])
    nothing = write(tmp_path / "nothing.jsonl", [{"text": "a"}, {"text": "dog"}])
    answer = redraft("evaluate", "--model", "base-masked", "--data", nothing)
    assert answer.code == 2 and "can be continued" in answer.err


def test_data_and_model_must_match(redraft: Redraft, pairs: Path) -> None:
    answer = redraft("evaluate", "--model", "base-masked", "--data", pairs, *COLUMNS)
    assert answer.code == 2
    assert "plain text" in answer.err


# models, doctor


def test_models_lists_the_requested_kinds(redraft: Redraft) -> None:
    from redraft.registry import names

    found = redraft("models", "--families", "--caches", "--json").json
    assert set(found) == {"families", "caches"}
    assert [one["name"] for one in found["families"]] == list(names("families"))
    listed = redraft("models", "--families").out.splitlines()
    assert [line.split()[0] for line in listed[1:]] == list(names("families"))


def test_models_lists_all_parts(redraft: Redraft) -> None:
    from redraft.registry import names

    found = redraft("models", "--json").json
    assert [family["name"] for family in found["families"]] == list(names("families"))
    assert [sampler["name"] for sampler in found["samplers"]] == list(names("samplers"))
    assert all(family["citation"] for family in found["families"])
    cards = {checkpoint["name"]: checkpoint.get("card") for checkpoint in found["checkpoints"]}
    assert cards["translate-en-de-masked"] == "Untrained, for tests."
    assert {"base-masked", "base-autoregressive", "translate-en-de-autoregressive"} <= set(cards)
    assert "Untrained, for tests." in redraft("models").out


def test_doctor_finds_a_damaged_checkpoint(redraft: Redraft, zoo: Path) -> None:
    import hashlib

    files = sorted(zoo.glob("*/*.safetensors"))
    sums = {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    lines = [f"{digest}  {path.relative_to(zoo)}" for path, digest in sums.items()]
    try:
        (zoo / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
        well = redraft("doctor", "--json")
        assert {file["state"] for file in well.json["zoo"]} == {"intact"}
        assert well.code == 0 and well.json["ok"] is True
        lines[0] = f"{'0' * 64}  {files[0].relative_to(zoo)}"
        (zoo / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
        answer = redraft("doctor", "--json")
        found = answer.json
        assert answer.code == 1 and found["ok"] is False
        [problem] = [problem for problem in found["problems"] if "Checkpoint file" in problem["what"]]
        assert str(files[0].relative_to(zoo)) in problem["what"] and problem["needed"]
        assert f"! {problem['what']}" in redraft("doctor").out
    finally:
        (zoo / "SHA256SUMS").unlink()


def test_a_missing_optional_package_is_only_a_warning(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata as metadata

    real, gone = metadata.version, {"sacrebleu"}

    def version(name: str) -> str:
        if name in gone:
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    answer = redraft("doctor", "--json")
    (problem,) = (one for one in answer.json["problems"] if "sacrebleu" in one["what"])
    assert answer.code == 0 and answer.json["ok"] and not problem["needed"]
    gone.add("tokenizers")
    answer = redraft("doctor")
    assert answer.code == 1 and "! tokenizers is not installed" in answer.out


def test_doctor_measures(redraft: Redraft) -> None:
    found = redraft("doctor", "--json").json
    assert found["matmul_gflops"]["float32"] > 0
    assert found["copy_gb_per_second"] > 0
    assert found["threads"] >= 1


# errors and interruptions


def test_ctrl_c_is_quiet(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    import redraft as package

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("redraft.loading.load", interrupted)
    monkeypatch.setattr(package, "load", interrupted, raising=False)
    answer = redraft("generate", *MODEL, *PROMPT)
    assert (answer.code, answer.out, answer.err) == (130, "", "")


def test_a_bug_keeps_its_traceback(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    import redraft as package

    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(package, "load", broken, raising=False)
    with pytest.raises(ZeroDivisionError):
        redraft("generate", *MODEL, *PROMPT)


def test_json_is_strict(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN and infinities become null."""
    from redraft.cli import models

    monkeypatch.setattr(models, "_presets", lambda device: [{"value": math.nan, "more": [math.inf, 1.5]}])
    assert redraft("models", "--json").json["presets"] == [{"value": None, "more": [None, 1.5]}]


def test_a_closed_pipe_is_not_an_error() -> None:
    command = f"{sys.executable} -m redraft --help | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment(), check=False)
    assert done.stdout.startswith("Usage: redraft")
    assert done.stderr == ""


def test_interrupted_training_resumes(pairs: Path, tmp_path: Path, redraft: Redraft) -> None:
    """Ctrl-C during training: no traceback, exit code 130, and the same command finishes the run."""
    out = tmp_path / "out"
    arguments = ["train", "--data", str(pairs), *COLUMNS, *TINY, "--tokens", "200000", "--out", str(out)]
    arguments += ["--set", "train.save_every_tokens=4000", "--set", "train.log_every=1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "redraft", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=os.setsid,
    )
    deadline = time.monotonic() + 60
    while not list((out / "train").glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err and "The same command continues" in err
    again = redraft(*arguments)
    assert again.code == 0, again.err
    assert "resumed" in again.err, again.err
    assert (out / "model.safetensors").is_file()


# compare, demo

FILES = ["report.html", "report.md", "results.json"]


def test_compare_writes_its_files_and_resumes(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdict"
    command = ("compare", "--data", pairs, *COLUMNS, "--families", "autoregressive,masked", "--budget-tokens", 1500)
    command += ("--steps", "1,2", "--seeds", 1, "--preset", "toy", "--test-rows", 4, "--candidates", "1", "--out", out)
    first = redraft(*command, "--price-per-hour", 1.5, "--json")
    assert first.code == 0, first.err
    found = first.json
    assert found["verdict"]["headline"]
    assert [Path(path).name for path in found["files"].values()] == FILES
    assert all((out / name).stat().st_size > 0 for name in FILES)
    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert found["ok"] and written == {key: value for key, value in found.items() if key not in ("files", "ok")}
    assert written["study"]["families"] == ["autoregressive", "masked"]

    cells = {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()}
    again = redraft(*command, "--price-per-hour", 1.5)
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").iterdir()} == cells
    assert (found["verdict"]["advice_text"] or found["verdict"]["headline"]) in again.out
    assert "report.html" in again.out

    written = json.loads((out / "results.json").read_text(encoding="utf-8"))
    for name in FILES:
        (out / name).unlink()
    report = redraft("report", out, "--json")
    assert report.code == 0, report.err
    assert {**report.json, "created": ""} == {**written, "files": found["files"], "created": ""}
    assert all((out / name).stat().st_size > 0 for name in FILES)
    assert redraft("report", tmp_path).code == 2


def test_from_names_a_pair_or_a_checkpoint(redraft: Redraft, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft import UserError
    from redraft.compare.checkpoints import find_bases

    monkeypatch.setenv("REDRAFT_ZOO", str(zoo))
    families = ["autoregressive", "masked"]
    pair = {family: str((zoo / f"base-{family}").resolve()) for family in families}
    assert find_bases(["base"], families) == pair
    assert find_bases(["base-masked", str(zoo / "base-autoregressive")], families) == pair
    with pytest.raises(UserError, match="bass"):
        find_bases(["bass"], families)


def test_demo(redraft: Redraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from redraft.cli import demo

    whole = demo.study
    brief = {"budget_tokens": 1500, "steps": (2,), "candidates": (1,), "timed_calls": 2}
    monkeypatch.setattr(
        demo, "study", lambda *given: replace(whole(*given), **brief, test_rows=4, validation_rows=4, batch_sizes=(2,))
    )
    monkeypatch.setattr(demo, "_CALLS", 1)
    monkeypatch.setattr(demo, "_PRODUCTS", 2)
    answer = redraft("demo", "--out", tmp_path / "demo", "--json")
    assert answer.code == 0, answer.err
    found = answer.json
    assert found["denoised"]["nfe"] > 1
    assert set(found["race"]) == {"autoregressive", "masked"}
    assert all(Path(path).is_file() for path in found["files"].values())
    assert "░" in answer.err
    good_for = found["good_for"]
    assert good_for["multiplication"]["drafted by diffusion"]["same"] == 1
    assert good_for["json"]["valid"]["with"] == good_for["json"]["objects"]
    assert good_for["hole"]["text"].startswith("Mein Bruder hat ")


# tune


TUNE = ("--data-root", "none", "--all-rows", "--rows", 40, "--samplers", "confidence", "--caches", "exact,none")


def test_tune_chooses_settings_and_the_copy_uses_them(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    from redraft.tune.results import TuneResults

    quick = ("--max-new-tokens", 4, "--calls", 3, "--batch-sizes", "1", "--within", 100, "--json")
    asked = ("tune", *MODEL, "--data", pairs, *COLUMNS, *TUNE, *quick, "--out", tmp_path / "tuning")
    refused = redraft(*asked)
    assert refused.code == 2 and "--to" in refused.err, "a shipped checkpoint stays as it is"
    found = redraft(*asked, "--to", tmp_path / "tuned").json
    assert found["generation"]["sampler"] == "confidence" and found["written"] == str(tmp_path / "tuned")
    chosen = next(row for row in found["settings"] if row["id"] == found["winner"])
    assert chosen["nfe"] == min(row["nfe"] for row in found["settings"] if not row["eliminated"]), (
        "anything is good enough"
    )
    used = redraft("generate", "--model", tmp_path / "tuned", *PROMPT, "--json").json
    assert used["steps"] == found["generation"]["steps"]

    kept = TuneResults.read(tmp_path / "tuning")
    assert kept.to_mapping() == found and kept.find(kept.winner).config.steps == found["generation"]["steps"]
    assert found["winner"] in (tmp_path / "tuning" / "tune.md").read_text()
    page = (tmp_path / "tuning" / "tune.html").read_text()
    assert found["winner"] in page and "<script" not in page and "http" not in page.replace("http://www.w3.org", "")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "tuning" / "cells").iterdir()}
    again = redraft(*asked, "--dry-run").json
    assert again["written"] is None and again["texts_generated"] == found["texts_generated"]
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "tuning" / "cells").iterdir()}
    assert after == before, "what was measured once is not measured again"


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (("--within", 0), "within"),
        (("--samplers", "confidense"), "confidence"),
        (("--caches", "prefiks"), "prefix"),
        (("--batch-sizes", "1,x"), "batch-sizes"),
        (("--rows", 5), "too few"),
        (("--test",), "no test rows"),
        (("--samplers", "posterior"), "noise"),
    ],
)
def test_tune_explains_mistakes(
    redraft: Redraft, pairs: Path, tmp_path: Path, more: tuple[object, ...], word: str
) -> None:
    answer = redraft("tune", *MODEL, "--data", pairs, *COLUMNS, *TUNE, "--dry-run", "--out", tmp_path / "t", *more)
    assert answer.code == 2 and word in answer.err


# mixtures


def test_a_mixture_trains_is_evaluated_by_task_and_compared(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    task = '[[task]]\nname = "{0}"\nsource = "{1}"\ninput = "{2}"\ntarget = "{3}"\nprompt = "{0}: {{}}"\n'
    sides = "question", "answer"
    mixture = tmp_path / "both.mix.toml"
    mixture.write_text(task.format("qa", pairs.name, *sides) + task.format("back", pairs.name, *reversed(sides)))
    out, texts = tmp_path / "out", tmp_path / "texts.jsonl"
    cross = ("--data", mixture, "--network", "cross_attention")
    first = redraft("train", *cross, *TINY, "--tokens", 1500, "--out", out, "--json")
    assert first.code == 0, first.err
    assert "task back" in first.err  # the data report
    found = redraft(
        "evaluate", "--model", out, "--data", mixture, "--rows", 5, "--max-new-tokens", 8, "--out", texts, "--json"
    ).json
    assert set(found["tasks"]) == {"qa", "back"}
    assert found["tasks"]["qa"]["task"] == "qa"
    values = [next(iter(part["metrics"].values()))["value"] for part in found["tasks"].values()]
    assert found["mean"] == pytest.approx(sum(values) / 2)
    lines = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    assert {line["task"] for line in lines} == {"qa", "back"}
    assert redraft("evaluate", "--model", out, "--data", mixture, "--task", "qa").code == 2

    grid = ("--budget-tokens", 1500, "--preset", "toy", "--steps", 2, "--candidates", 1, "--test-rows", 4)
    verdict = redraft("compare", *cross, *grid, "--out", tmp_path / "verdict", "--json")
    assert verdict.code == 0, verdict.err
    assert verdict.json["task"]["primary"] == "mean"
    assert {metric["name"] for metric in verdict.json["task"]["metrics"]} > {"mean", "qa/f1"}
    assert verdict.json["settings"][0]["work"]["flops_per_token"] > 0


def test_evaluate_under_a_constraint(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    asked = ("evaluate", *MODEL, "--data", pairs, *COLUMNS, "--rows", 6, "--split", "validation", "--max-new-tokens", 8)
    out = tmp_path / "texts.jsonl"
    (tmp_path / "pattern").write_text("[a-c ]{1,6}\n")  # as an editor leaves it: the line end is no part of it
    found = redraft(*asked, "--constraint", f"regex=@{tmp_path / 'pattern'}", "--out", out, "--json").json
    assert found["constraint"] == {"regex": "[a-c ]{1,6}"}
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert texts and all(1 <= len(text) <= 6 and set(text) <= set("abc ") for text in texts)
