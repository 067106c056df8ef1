"""``redraft study`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from redraft.study.claim import Claim, names
from tests.cli.door import PAIRS, Redraft, write

RECIPE = """
claim = "one step is enough"
source = "a test"
compares = "Steps."
seeds = 1
train = { batch_tokens = 512, validate_every = 0, validation_rows = 8 }
analysis = { name = "saturation" }
tasks.pairs = { source = "nowhere", vocab_size = 300, length = 80, new_tokens = 16, test_rows = 6, validation_rows = 6 }
models.autoregressive = { family = { name = "autoregressive" } }
models.masked = { family = { name = "masked" } }
decode.greedy = { models = ["autoregressive"], sampler = "autoregressive" }
decode.steps = { models = ["masked"], sampler = "confidence", sweep = { steps = [1, 2] } }
[budgets.small]
preset = "toy"
train = { tokens = 600 }
"""


@pytest.fixture
def words(tmp_path: Path) -> list[object]:
    (tmp_path / "one.toml").write_text(RECIPE, encoding="utf-8")
    data = write(tmp_path / "data.jsonl", PAIRS)
    given = ["--data", data, "--input", "question", "--target", "answer", "--out", tmp_path / "out"]
    return ["study", "run", tmp_path / "one.toml", *given]


def test_claims_are_listed(redraft: Redraft) -> None:
    shown = redraft("study", "list").out
    assert all(name in shown and Claim.load(name).claim in shown for name in names())


def test_a_claim_is_planned_run_and_reported_on_own_data(redraft: Redraft, words: list[object], tmp_path: Path) -> None:
    plan = redraft(*words, "--dry-run", "--json").json
    assert plan["claims"]["one"]["kinds"] == {"data": 1, "trivial": 1, "train": 2, "texts": 3}
    assert plan["minutes"] > 0 and not (tmp_path / "out").exists()
    answer = redraft(*words, "--json")
    found = answer.json["claims"]["one"]
    assert found["preliminary"] and found["verdict"] in ("open", "holds", "in part", "not seen")
    assert "training of masked on own, seed 0" in answer.err and "left" in answer.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "one step is enough" in page and "--input question" in page and found["rule"][:40] in page
    again = redraft("study", "report", "--out", tmp_path / "out", "--records", tmp_path, "--json").json
    assert again["claims"]["one"] == found and (tmp_path / "one.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ran"], "list, run or report"),
        (["run"], "No claim was named"),
        (["run", "stesp"], "Did you mean 'steps'"),
        (["run", "steps", "--input", "a"], "without data"),
        (["run", "steps", "--budget", "smal"], "small"),
        (["run", "cross-attention", "--data", "x"], "several tasks"),
        (["run", "speed", "--data", "x"], "uses no data"),
        (["run", "continuous-time", "--budget", "shipped"], "no budget 'shipped'"),
        (["run", "steps", "--data", "nowhere.jsonl", "--input", "a", "--target", "b"], "nowhere.jsonl"),
        (["report", "--out", "nowhere"], "no findings"),
    ],
)
def test_a_mistake_is_one_line(redraft: Redraft, arguments: list[str], words: str, tmp_path: Path) -> None:
    where = [] if "--out" in arguments else ["--out", tmp_path / "new"]
    answer = redraft("study", *arguments, *where)
    assert answer.code == 2 and words in answer.err and answer.err.count("\n") == 1
    assert not (tmp_path / "new" / "study.sqlite").exists()
