"""Recent public formats in use: written back, fine-tuned with an adapter and without, served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from redraft.data.tokenizer import Tokenizer
from redraft.loading import load
from tests.checkpoints import CONFIGS, write
from tests.cli.door import Redraft

FORMATS = ("sdar", "fast_dllm_v2", "llada2_moe", "dream", "dreamon", "illada", "nemotron_labs_diffusion")
FORMATS = (*FORMATS, "diffusion_gemma", "sdar_moe")
EXPERTS = {
    "sdar_moe": "q_proj,gate_proj,down_proj",
    "llada2_moe": "query_key_value,gate_proj,up_proj,down_proj",
    "diffusion_gemma": "q_proj,gate_up_proj,down_proj",
}
SMALL = ("--tokens", "900", "--set", "train.batch_tokens=512", "--set", "train.threads=1", "--set", "data.length=100")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each format, with a tokenizer of bytes."""
    root, tokenizer = tmp_path_factory.mktemp("published"), Tokenizer.bytes()
    ids = {f"{key}_token_id": getattr(tokenizer, f"{key}_id") for key in ("mask", "eos", "pad", "bos")}
    for name in FORMATS:
        more = {"expand_token_id": 7} if name == "dreamon" else {}
        sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
        config = CONFIGS[name][0]
        if "text_config" in config:
            config, sizes = {**config, "text_config": {**config["text_config"], **sizes}}, {}
        tokenizer.save(write(root / name, {**config, **sizes, **ids, **more}))
    return {name: root / name for name in FORMATS}


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_is_written_back_in_its_format(
    redraft: Redraft, published: dict[str, Path], name: str, tmp_path: Path
) -> None:
    answer = redraft("convert", published[name], tmp_path / "m", "--to", name, "--json")
    assert answer.code == 0, answer.err
    before, after = load(published[name]), load(tmp_path / "m")
    ids = torch.arange(5, 37)[None]
    assert torch.equal(before.logits(ids), after.logits(ids))
    assert (before.spec, before.family) == (after.spec, after.family)
    assert before.defaults == after.defaults


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_is_fine_tuned_with_an_adapter_and_without(
    redraft: Redraft, published: dict[str, Path], name: str, pairs: Path, tmp_path: Path
) -> None:
    given = ("--from", published[name], "--data", pairs, "--input", "question", "--target", "answer", *SMALL)
    experts = ("--lora-targets", EXPERTS[name]) if name in EXPERTS else ()
    for out, adapter in (("whole", ()), ("adapter", ("--lora-rank", "2", *experts))):
        made = redraft("finetune", *given, *adapter, "--out", tmp_path / out, "--json")
        assert made.code == 0, made.err
        said = redraft("generate", "--model", tmp_path / out, "--prompt", "the cat", "--max-new-tokens", "8", "--json")
        assert said.code == 0 and said.json["family"] == load(published[name]).family_name, said.err
    merged = redraft("convert", published[name], tmp_path / "m", "--adapter", tmp_path / "adapter", "--to", name)
    assert merged.code == 0, merged.err
    base, tuned, back = load(published[name]), load(tmp_path / "adapter"), load(tmp_path / "m")
    ids = torch.arange(5, 37)[None]
    assert torch.equal(tuned.logits(ids), back.logits(ids)) and not torch.equal(tuned.logits(ids), base.logits(ids))


@pytest.fixture(scope="session")
def server(published: dict[str, Path]) -> Iterator[Any]:
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from redraft.serve.app import create_app
    from tests.serve.conftest import server_config

    with TestClient(create_app(server_config(published)), base_url="http://localhost") as opened:
        yield opened


@pytest.mark.parametrize("name", FORMATS)
def test_a_checkpoint_is_served(server: Any, published: dict[str, Path], name: str) -> None:
    asked = {"model": name, "prompt": ["the cat", "a"], "max_tokens": 12, "seed": 1}
    answer = server.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    found = [choice["text"] for choice in answer.json()["choices"]]
    alone = load(published[name]).generate(["the cat", "a"], max_new_tokens=12, seed=1)
    assert found == [each.text for each in alone]
