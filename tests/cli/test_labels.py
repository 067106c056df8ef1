"""``redraft decide``: one text, a file of texts, and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.door import Redraft, write

MODEL = ("--model", "base-masked")
ASKED = ("--text", "the cat {what} Mood: [mood].", "--slot", 'mood=["good", "bad, very"]')
ROWS = [{"what": f"sat on a mat {number}", "is": "good"} for number in range(40)]


def test_one_text(redraft: Redraft) -> None:
    found = redraft("decide", *MODEL, *ASKED, "--field", "what=sat", "--json").json
    assert found["labels"]["mood"] in ("good", "bad, very")
    assert found["text"] == f"the cat sat Mood: {found['labels']['mood']}."
    assert sum(found["probabilities"]["mood"].values()) == pytest.approx(1)
    assert (found["nfe"], found["method"], found["family"]) == (1, "auto", "masked")
    shown = redraft("decide", *MODEL, *ASKED, "--field", "what=sat").out
    assert shown.startswith(f"mood: {found['labels']['mood']} ")
    ranked = redraft(
        "decide", "--model", "base-autoregressive", *ASKED, "--field", "what=sat", "--by", "token", "--json"
    )
    assert ranked.json["by"] == "token" and ranked.json["family"] == "autoregressive"


def test_every_row_of_a_file(redraft: Redraft, tmp_path: Path) -> None:
    data, out = write(tmp_path / "rows.jsonl", ROWS), tmp_path / "out.jsonl"
    answer = redraft("decide", *MODEL, *ASKED, "--data", data, "--out", out, "--gold", "mood=is", "--json")
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [one["row"] for one in lines] == [f"{data}:{number + 1}" for number in range(40)]
    right = sum(one["labels"]["mood"] == "good" for one in lines) / 40
    assert answer.json["accuracy"] == {"mood": right} and answer.json["rows"] == 40 and answer.json["nfe"] == 1
    assert "40 rows right" in answer.err
    printed = redraft("decide", *MODEL, *ASKED, "--data", data).out.splitlines()
    assert [json.loads(line) for line in printed] == lines
    (alone,) = [redraft("decide", *MODEL, *ASKED, "--field", f"what={ROWS[35]['what']}", "--json").json]
    assert alone["probabilities"]["mood"] == pytest.approx(lines[35]["probabilities"]["mood"], abs=1e-4)


def test_mistakes_are_named(redraft: Redraft, tmp_path: Path) -> None:
    data = write(tmp_path / "rows.jsonl", ROWS)
    for more, words in (
        (("--slot", "mood=a"), "twice"),
        (("--slot", "kind=a,b"), "no slot [kind]"),
        (("--slot", "kind"), "NAME=VALUE"),
        (("--slot", "kind=[a"), "not a JSON list"),
        ((), "no field 'what'"),
        (("--out", "x"), "belongs to --data"),
        (("--data", data, "--field", "what=x"), "can't be combined"),
        (("--data", data, "--gold", "kind=is"), "which has no labels"),
        (("--data", data, "--gold", "mood=what"), "none of the labels"),
        (("--data", data, "--gold", "mood=iss"), "Did you mean 'is'"),
        (("--data", data, "--split", "test"), "no split 'test'"),
        (("--data", write(tmp_path / "bad.jsonl", [{"other": "x"}])), f"{tmp_path}/bad.jsonl:1: The row has no field"),
        (("--field", "what=x", "--method", "guess"), "guess"),
    ):
        answer = redraft("decide", *MODEL, *ASKED, *more)
        assert answer.code == 2 and words in answer.err, (more, answer.err)
