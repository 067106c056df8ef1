"""What is built around training and generation, on the pretend device: files, conversion, the server, commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

import redraft
from redraft.conversion import convert_family
from redraft.errors import UserError
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from tests import pretend_device
from tests.device.counting import RECIPES, tiny
from tests.device.flows.conftest import FAMILIES, FULL, Models, texts
from tests.numerics.test_parity import ROOT as PARITY


@pytest.mark.parametrize("target", FAMILIES if FULL else ["masked"])
@pytest.mark.parametrize("source", ["masked-text", "autoregressive-text", "masked-pairs"] if FULL else [
    "autoregressive-text"])  # fmt: skip
def test_conversion_on_the_device(models: Models, source: str, target: str) -> None:
    answers = []
    for where in ("cuda", "cpu"):
        model = redraft.load(models.folder(source), where, "float32")  # its own: the network is changed
        try:
            answers.append(texts(convert_family(model, {"name": target})))
        except UserError as error:
            answers.append(str(error))  # type: ignore[arg-type]
    assert answers[0] == answers[1]


def test_adapters_fold_in(tmp_path: Path) -> None:
    path = RECIPES / "toy" / "lora.toml"
    train(Recipe.load(path, tiny(Recipe.load(path))), tmp_path / "adapter", device="cuda")
    found = [
        redraft.load(tmp_path / "adapter", where, "float32").generate("a dog", max_new_tokens=8)[0].ids
        for where in ("cuda", "cpu")
    ]
    assert found[0] == found[1]


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"] if FULL else ["int8"])
def test_a_model_is_saved_from_the_device(models: Models, tmp_path: Path, storage: str) -> None:
    device, host = models.both("masked-text")
    device.save(tmp_path / "a", storage)
    host.save(tmp_path / "b", storage)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


@pytest.mark.parametrize("family", FAMILIES if FULL else ["masked"])
def test_the_server_serves(models: Models, family: str) -> None:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app
    from redraft.serve.config import ServerConfig

    found = []
    folder = models.folder(f"{family}-pairs")
    for where in ("cuda", "cpu"):
        chosen = ServerConfig((str(folder),), batch=8, device=where, dtype="float32", shutdown_timeout=5.0)
        with TestClient(create_app(chosen), base_url="http://localhost") as server:
            ask = {"model": f"{family}-pairs", "max_tokens": 6, "seed": 1}
            several = server.post("/v1/completions", json={**ask, "prompt": ["ab", "a longer one", "x"]})
            assert several.status_code == 200, several.text
            drawn = server.post("/v1/completions", json={**ask, "prompt": "ab", "temperature": 1.0})
            logprobs = server.post("/v1/completions", json={**ask, "prompt": "ab", "logprobs": 3})
            infilled = server.post("/v1/infill", json={**ask, "max_tokens": None, "text": "a[[2]]b", "prompt": "x"})
            assert {drawn.status_code, logprobs.status_code, infilled.status_code} <= {200, 400, 422}
            answers = [choice["text"] for choice in several.json()["choices"]]
            found.append([*answers, drawn.json()["choices"][0]["text"]])
    assert found[0] == found[1]


def test_a_round_of_the_server_waits_once(models: Models, log: pretend_device.Log) -> None:
    """The texts of a round draw by themselves, and the host waits for all of them together."""
    from redraft.serve.engine import Engine, EngineLimits
    from redraft.serve.incremental_text import Span
    from redraft.serve.jobs import Job

    model = models.both("autoregressive-text")[0]
    settings = model.settings(max_new_tokens=8, ignore_eos=True, temperature=1.0)
    runs = [model.start([f"text {number}"], settings) for number in range(4)]
    log.clear()
    engine = Engine(model, EngineLimits(rows=4))
    try:
        done: list[Any] = []
        length = runs[0].canvas.ids.shape[1]
        jobs = [Job(run, Span(length - 8, length), done.append, streams=False) for run in runs]
        engine.submit("test", jobs)
        while len(done) < len(jobs):
            time.sleep(0.01)
    finally:
        engine.close(5.0)
    assert len(log.of("wait")) <= engine.counts["forward_passes"], log.report()


MASKS = {"llada_moe": 3, "llada2_moe": 3}  # of those whose files don't name it; any id will do
FORMATS = ["gpt2", "llama", "qwen2", "qwen3", "llada", "dream", "diffugpt", "diffullama", "llada_moe", "llada2_moe",
           "mdlm", "sedd", "bd3lm", "latent_diffusion", "diffusion_gemma"]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS if FULL else ["gpt2", "llada2_moe", "diffusion_gemma"])
def test_public_formats_write_the_same(name: str, log: pretend_device.Log) -> None:
    folders = [p.parent for p in sorted((PARITY / name).rglob("config.json"))]
    if not folders:
        pytest.skip(f"no reference checkpoints of {name} (set REDRAFT_PARITY)")
    for folder in folders if FULL else folders[:1]:
        found = []
        for where in ("cuda", "cpu"):
            model = redraft.load(folder, where, "float32", mask_id=MASKS.get(name))
            prompts = [[5, 6, 7, 8], [9, 10]]
            steps = {} if model.spec.family.schedule is None else {"steps": 4}
            found.append([one.ids for one in model.generate(prompts, max_new_tokens=8, **steps)])
        assert found[0] == found[1]
        assert not log.of("unmoved")


DATA = ["--data", str(RECIPES / "toy/data/tatoeba.en-de"), "--input", "src", "--target", "ref"]
COMMANDS: dict[str, list[str]] = {
    "generate": ["generate", "--model", "base-masked", "--prompt", "The calm", "--max-new-tokens", "8"],
    "infill": ["infill", "--model", "base-masked", "--text", "The [[2]] was [[?]].", "--dtype", "float32"],
    "evaluate": ["evaluate", "--model", "translate-en-de-masked", "--rows", "4", *DATA],
    "doctor": ["doctor"],
    "tune": ["tune", "--model", "translate-en-de-masked", *DATA, "--rows", "24", "--samplers", "confidence",
             "--batch-sizes", "1", "--calls", "3", "--minutes", "1", "--dry-run"],
    "compare": ["compare", *DATA, "--from", "scratch", "--preset", "toy", "--budget-tokens", "3000",
                "--seeds", "1", "--test-rows", "6", "--steps", "2", "--candidates", "1"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS if FULL else ["generate"])
def test_a_command_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft.cli._main import main

    monkeypatch.chdir(tmp_path)
    assert main([*COMMANDS[name], "--device", "cuda"]) == 0


@pytest.mark.skipif(not FULL, reason="REDRAFT_FULL=1 runs it")
@pytest.mark.parametrize("model", ["masked-text", "autoregressive-text"])
def test_the_harness_asks(models: Models, model: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from redraft.interop.lm_eval import RedraftLM

    def ask(kind: str, *arguments: Any) -> list[Instance]:
        return [Instance(kind, {}, arguments, 0)]

    found = []
    for where in ("cuda:0", "cpu"):
        lm = RedraftLM(str(models.folder(model)), device=where, dtype="float32", samples=8, check_greedy=True)
        (score, greedy), *_ = lm.loglikelihood(ask("loglikelihood", "ab", "cd"))
        written = lm.generate_until(ask("generate_until", "ab", {"until": ["."], "max_gen_toks": 6}))
        found.append((f"{score:.4g}", greedy, written))
    assert found[0] == found[1]
