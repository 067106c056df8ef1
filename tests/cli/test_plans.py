"""Plans on the command line: ``redraft plan``, and ``--dry-run`` of the commands that need memory."""

from __future__ import annotations

from pathlib import Path

from tests.cli.door import PAIRS, Redraft, write


def test_a_preset_is_planned_for_a_machine(redraft: Redraft) -> None:
    shown = redraft("plan", "--preset", "toy", "--machine", "h100", "--gpus", 8, "--parallel", "fsdp").out
    for part in ("8 x h100, fsdp", "all-gather", "reduce-scatter", "tokens/s", "serving", "break-even"):
        assert part in shown


def test_a_recipe_and_its_changes_are_planned(redraft: Redraft) -> None:
    words = ("plan", "recipes/toy/masked.toml", "--machine", "rtx4090", "--json")
    averaged = redraft(*words).json["training"]["memory"]
    plain = redraft(*words, "--set", "train.ema=0").json["training"]["memory"]
    assert averaged["averages"] - plain["averages"] == plain["gradients"]


def test_a_plan_of_nothing_is_a_mistake(redraft: Redraft) -> None:
    answer = redraft("plan")
    assert answer.code == 2 and "--preset" in answer.err


def test_a_server_is_planned_without_starting(redraft: Redraft) -> None:
    answer = redraft("serve", "--model", "mine=translate-en-de-masked", "--batch", 8, "--dry-run", "--json")
    found = answer.json["memory"]
    assert "url" not in answer.json and found["rows"] == 8 and found["models"][0]["name"] == "mine"
    assert "largest batch" in answer.err


def test_a_study_is_planned_without_starting(redraft: Redraft, tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", PAIRS)
    columns = ("--input", "question", "--target", "answer")
    out = tmp_path / "study"
    words = ("compare", "--data", data, *columns, "--preset", "toy", "--budget-tokens", 20_000, "--out", out)
    answer = redraft(*words, "--dry-run", "--json")
    found = answer.json
    assert found["plan"]["tokens"] == 20_000 and found["minutes"] > 0
    assert found["memory"].keys() == {"autoregressive", "masked"} == set(found["families"])
    for part in ("training", "tokens each", "minutes", "memory   masked:"):
        assert part in answer.err
    assert not (out / "study.json").exists() and not (out / "report.html").exists()
