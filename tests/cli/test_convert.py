"""``redraft convert``: to redraft's format, to Llama, to another family, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from redraft.loading import load
from tests.cli.door import Redraft


def test_the_format_of_redraft(redraft: Redraft, zoo: Path, tmp_path: Path) -> None:
    answer = redraft("convert", "translate-en-de-masked", tmp_path / "m", "--json")
    assert answer.code == 0, answer.err
    assert answer.json["family"] == "masked"
    ids = torch.arange(5, 25)[None]
    before, after = load(zoo / "translate-en-de-masked"), load(tmp_path / "m")
    assert torch.equal(before.logits(ids), after.logits(ids)) and before.spec == after.spec
    assert "translate-en-de-masked" in (tmp_path / "m" / "README.md").read_text()


def test_to_llama_and_back(redraft: Redraft, zoo: Path, tmp_path: Path) -> None:
    assert redraft("convert", "base-autoregressive", tmp_path / "m", "--to", "llama", "--storage", "bfloat16").code == 0
    assert json.loads((tmp_path / "m" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    written = redraft("generate", "--model", tmp_path / "m", "--prompt", "the cat", "--max-new-tokens", "4", "--json")
    assert written.code == 0 and written.json["family"] == "autoregressive"


def test_to_another_family(redraft: Redraft, zoo: Path, tmp_path: Path) -> None:
    answer = redraft(
        "convert", "base-autoregressive", tmp_path / "m", "--to", "masked", "--option", "shift=1", "--json"
    )
    assert answer.code == 0 and answer.json["family"] == "masked" and answer.json["format"] == "masked"
    before, after = load(zoo / "base-autoregressive"), load(tmp_path / "m")
    assert after.spec.network.shift == 1 and after.spec.network.attention.kind == "full"
    assert all(torch.equal(a, b) for a, b in zip(before.network.parameters(), after.network.parameters(), strict=True))
    for words, says in (
        (("--to", "masked", "--option", "shft=1"), "Did you mean 'shift'?"),
        (("--option", "shift=1"), "family"),
    ):
        answer = redraft("convert", "base-autoregressive", tmp_path / "n", *words)
        assert answer.code == 2 and says in answer.err, answer.err


def test_models_that_a_format_cannot_hold_are_refused(redraft: Redraft, tmp_path: Path) -> None:
    for words, says in (
        (("base-masked", tmp_path / "m", "--to", "llama"), "not autoregressive"),
        (("translate-en-de-autoregressive", tmp_path / "m", "--to", "llama"), "prompt encoder"),
        (("base-autoregressive", tmp_path / "m", "--to", "lama"), "Did you mean 'llama'?"),
        (("base-autoregressive", tmp_path / "m", "--to", "llama", "--storage", "int8"), "int8"),
        (("base-autoregressive", tmp_path / "m", "--storage", "int3"), "int3"),
        (("base-autoregressive", tmp_path / "m", "--mask-id", "3"), "mask_id"),
    ):
        answer = redraft("convert", *words)
        assert answer.code == 2 and says in answer.err, answer.err
    assert not (tmp_path / "m").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    answer = redraft("convert", "base-autoregressive", tmp_path / "full")
    assert answer.code == 2 and "not empty" in answer.err


def test_a_folder_without_references(redraft: Redraft, tmp_path: Path) -> None:
    answer = redraft("doctor", "--parity", tmp_path)
    assert answer.code == 2 and "no reference values" in answer.err
