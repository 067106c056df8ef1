"""A study whose models are trained further on rewards before they are measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from redraft.compare import run as runs
from redraft.compare.record import Record
from redraft.compare.study import Study
from redraft.errors import UserError
from redraft.loading import load

REWARD = {"name": "reward", "reward": "chrf", "group": 2, "kl": 0.0}


def study(folder: Path, **fields: Any) -> Study:
    lines = [json.dumps({"input": f"say {n}", "target": "abc"[n % 3] * (1 + n % 4)}) for n in range(90)]
    (folder / "mine.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    given: dict[str, Any] = {
        "data": str(folder / "mine.jsonl"),
        "input": "input",
        "target": "target",
        "preset": "toy",
        "vocab_size": 280,
        "budget_tokens": 1000,
        "steps": (2,),
        "candidates": (1,),
        "test_rows": 2,
        "validation_rows": 2,
        "timed_calls": 2,
        "batch_sizes": (1,),
        "train": {"validation_rows": 4, "validate_every": 0, "threads": 1},
        "device": "cpu",
        "out": str(folder / "out"),
        "post_training": REWARD,
        "post_prompts": 8,
        "post_lr": 1e-3,
    }
    return Study(**{**given, **fields})


def test_every_family_gets_the_same_rewards_for_as_many_texts(tmp_path: Path) -> None:
    found = runs.run(study(tmp_path), lambda line: None)
    assert found.complete, found.missing
    posts = [run.post for run in found.training]
    assert len(posts) == 2 and all(post is not None for post in posts)
    for run, post in zip(found.training, posts, strict=True):
        assert post is not None and post.texts == 2 * post.prompts and post.prompts >= 8 and post.steps >= 1
        assert post.flops > 0 and 0 <= post.first_reward <= 1 and 0 <= post.last_reward <= 1
        folder = tmp_path / "out" / run.model
        after, before = (load(one, "cpu").network.state_dict() for one in (folder, folder / "before"))
        assert any(not before[name].equal(after[name]) for name in after), "the measured model is the later one"
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "Post-training" in text and "trained on the same rewards" in text and "reward (reward chrf" in text
    assert Record.load(tmp_path / "out" / "results.json") == found


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"post_training": {"name": "preference"}}, "One of reward, sandwich"),
        ({"post_training": {"name": "reword", "reward": "chrf"}}, "reward"),
        ({"post_training": {"name": "reward"}}, "'reward' is missing"),
        ({"post_training": {**REWARD, "gruop": 3}}, "group"),
        ({"budget_tokens": 0, "minutes": 5.0}, "is not planned"),
        ({"budget_tokens": 0}, "is not planned"),
    ],
)
def test_mistakes_are_found_before_anything_is_trained(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        study(tmp_path, **fields)
