"""Majority voting and distillation on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.door import Redraft

DATA = ("--data", "multiplication:3x3:50", "--input", "question", "--target", "rationale+answer", "--split", "test")
FEW = ("--rows", 3, "--max-new-tokens", 8, "--json")


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_every_vote_counts_as_generated_tokens(redraft: Redraft, family: str, tmp_path: Path) -> None:
    evaluate = ("evaluate", "--model", f"translate-en-de-{family}", *DATA, *FEW, "--temperature", 1.0)
    one, three = redraft(*evaluate).json, redraft(*evaluate, "--votes", 3, "--out", tmp_path / "texts.jsonl").json
    assert one["task"] == three["task"] == "reasoning"
    assert (one["inputs"], three["inputs"], three["votes"]) == (3, 3, 3)
    assert three["nfe"] > 1.5 * one["nfe"]
    assert len((tmp_path / "texts.jsonl").read_text(encoding="utf-8").splitlines()) == 3
    assert set(three["metrics"]) == {"final_answer", "accuracy"}


def test_votes_need_a_temperature(redraft: Redraft) -> None:
    answer = redraft("evaluate", "--model", "translate-en-de-masked", *DATA, *FEW, "--votes", 3)
    assert answer.code == 2 and "--temperature" in answer.err


def test_a_masked_model_is_distilled_by_finetuning(redraft: Redraft, pairs: Path, tmp_path: Path) -> None:
    options = ("--data", pairs, "--input", "question", "--target", "answer", "--set", "data.length=64", "--tokens", 300)
    distil = ("finetune", "--from", "translate-en-de-masked", "--set", "family.name=distilled", *options)
    assert redraft(*distil, "--out", tmp_path / "out", "--json").code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["family"]["name"] == "distilled"
    found = redraft("generate", "--model", tmp_path / "out", "--prompt", "a cat", "--steps", 1, "--json").json
    assert found["nfe"] == 2  # the length, and the text
