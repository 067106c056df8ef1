"""Drafters on the command line, and models that generate block by block."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.door import Redraft

MAIN = ("--model", "translate-en-de-autoregressive")
DRAFTER = ("--drafter", "translate-en-de-masked")
PROMPT = ("--prompt", "the cat sat on a mat", "--max-new-tokens", 12, "--json")


@pytest.mark.parametrize("heat", [(), ("--temperature", 1.0)])
def test_a_drafter_changes_the_forward_passes_and_not_the_text(redraft: Redraft, heat: tuple[object, ...]) -> None:
    plain = redraft("generate", *MAIN, *PROMPT, *heat, "--option", "draws=gumbel").json
    found = redraft("generate", *MAIN, *DRAFTER, "--sampler", "draft_verify", *PROMPT, *heat).json
    assert (found["text"], found["new_tokens"]) == (plain["text"], plain["new_tokens"])
    assert found["sampler"] == "draft_verify" and found["drafter"] == "translate-en-de-masked"
    assert 0 <= found["accepted"] <= found["drafted"] and found["drafted"] > 0
    assert found["tokens_per_pass"] == pytest.approx(found["new_tokens"] / found["nfe"])
    assert plain["drafted"] == 0 and plain["drafter"] is None


def test_naming_a_drafter_is_enough(redraft: Redraft) -> None:
    found = redraft("generate", *MAIN, *DRAFTER, "--option", "block=3", *PROMPT).json
    assert found["sampler"] == "draft_verify" and found["options"]["block"] == 3


def test_evaluate_with_a_drafter(redraft: Redraft, pairs: Path) -> None:
    data = ("--data", pairs, "--input", "question", "--target", "answer", "--rows", 3, "--max-new-tokens", 8, "--json")
    plain, found = redraft("evaluate", *MAIN, *data).json, redraft("evaluate", *MAIN, *DRAFTER, *data).json
    assert found["sampler"] == "draft_verify" and found["drafter"] == "translate-en-de-masked"
    assert found["metrics"] == plain["metrics"] and found["new_tokens"] == plain["new_tokens"]
    assert found["tokens_per_pass"] == pytest.approx(found["new_tokens"] / found["nfe"] / found["inputs"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((*DRAFTER, "--sampler", "autoregressive"), "doesn't use a drafter"),
        (("--drafter", "translate-en-de-autoregressive"), "can't draft"),
        (("--drafter", "base-masked"), "plain text"),
        (("--drafter", "nobody"), "nobody"),
        (("--sampler", "draft_verify"), "--drafter"),
        ((*DRAFTER, "--option", "blocks=3"), "block"),
    ],
)
def test_an_unsuitable_drafter_is_refused(redraft: Redraft, options: tuple[str, ...], says: str) -> None:
    answer = redraft("generate", *MAIN, *options, *PROMPT[:-1])
    assert answer.code == 2 and says in answer.err.strip().splitlines()[-1]
    assert answer.out == ""


@pytest.mark.parametrize("family", ["block", "hybrid"])
def test_a_block_model_trains_and_generates(redraft: Redraft, pairs: Path, tmp_path: Path, family: str) -> None:
    """Training also searches the noise interval of the block family."""
    options = ("--set", "family.search=true") if family == "block" else ()
    trained = redraft(
        *("train", "--data", pairs, "--input", "question", "--target", "answer", "--out", tmp_path / "m"),
        *("--family", family, "--set", "family.block=3", *options, "--preset", "toy", "--tokens", 3000, "--json"),
        *("--set", "tokenizer.vocab_size=300", "--set", "data.length=64", "--set", "train.batch_tokens=256"),
        *("--set", "train.validate_every=1000", "--set", "data.fractions=[0.8, 0.1, 0.1]"),
    ).json
    assert trained["validation"]["is_bound"] == (family == "block")
    found = redraft("generate", "--model", tmp_path / "m", *PROMPT).json
    assert found["family"] == family and found["nfe"] > 0
    assert found["sampler"] == {"block": "confidence", "hybrid": "draft_verify"}[family]
    if family == "block":
        assert found["steps"] == 3, "as many steps as positions of a block"
        refused = redraft("generate", "--model", tmp_path / "m", "--option", "block=2", *PROMPT)
        assert refused.code == 2 and "in blocks of 3" in refused.err
