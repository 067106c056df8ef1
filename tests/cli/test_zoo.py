"""Shipped checkpoints are intact, small, have a model card, and load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.door import Redraft

ZOO = Path(__file__).parents[2] / "zoo"
MODELS = sorted(path.parent for path in ZOO.glob("*/config.json"))
MOST_BYTES = 8_000_000

pytestmark = pytest.mark.skipif(not MODELS, reason="no shipped checkpoints in zoo/")


def test_every_file_is_listed_and_intact() -> None:
    from redraft.zoo.files import check

    states = check(ZOO)
    assert set(states.values()) == {"intact"}
    folders = [*MODELS, ZOO / "rows"]
    assert set(states) == {path.relative_to(ZOO).as_posix() for folder in folders for path in folder.iterdir()}


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_a_checkpoint_is_small_and_has_a_card(model: Path) -> None:
    assert sum(path.stat().st_size for path in model.iterdir()) <= MOST_BYTES
    card = (model / "README.md").read_text(encoding="utf-8").lower()
    for part in ("data", "licence", "recipe"):
        assert part in card


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.name)
def test_a_checkpoint_loads_and_generates(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import redraft

    monkeypatch.setenv("REDRAFT_ZOO", str(ZOO))
    prompt, most = ("1 2 3 4 * 5 6 7 8", 96) if model.name.startswith("multiply") else ("I am tired.", 16)
    [found] = redraft.load(model.name, "cpu").generate(prompt, max_new_tokens=most)
    assert found.ids


def test_every_checkpoint_has_a_recipe_and_a_record() -> None:
    from redraft.zoo.card import page, read_record
    from redraft.zoo.recipes import entry

    for model in MODELS:
        made, record = entry(model.name), read_record(model)
        assert record.measured and record.name == model.name
        assert (model / "README.md").read_text(encoding="utf-8") == page(record, made.card)


def test_verify_finds_the_figures_of_the_card(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_ZOO", str(ZOO))
    answer = redraft("zoo", "verify", "multiply-autoregressive")
    assert answer.code == 0 and "as on its card" in answer.out


def test_verify_notices_a_damaged_file_and_another_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from redraft.zoo.files import list_checksums
    from redraft.zoo.verify import verify

    root = tmp_path / "zoo"
    shutil.copytree(
        ZOO, root, ignore=lambda folder, names: [n for n in names if n.startswith(("base", "pairs", "tra"))]
    )
    (tmp_path / "recipes").symlink_to(ZOO.parent / "recipes")
    monkeypatch.setenv("REDRAFT_ZOO", str(root))
    card = root / "multiply-autoregressive" / "card.json"
    record = json.loads(card.read_text(encoding="utf-8"))
    next(iter(record["measured"][""]["metrics"].values()))["value"] -= 20
    card.write_text(json.dumps(record), encoding="utf-8")
    assert verify("multiply-autoregressive", print).damaged == ["multiply-autoregressive/card.json is damaged"]
    list_checksums(root)
    found = verify("multiply-autoregressive", print)
    assert not found.damaged and [check.ok for check in found.checks].count(False) == 1


def test_unknown_names_get_a_suggestion(redraft: Redraft, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDRAFT_ZOO", str(ZOO))
    for arguments, remedy in ((("verify", "multiply-maskd"), "multiply-masked"), (("verfy",), "verify")):
        answer = redraft("zoo", *arguments)
        assert answer.code == 2 and remedy in answer.err
    assert redraft("zoo", "build").code == 2


def test_a_checkpoint_is_built_measured_and_verified(
    redraft: Redraft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "recipes" / "zoo" / "tiny.toml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text(
        """
        [data]
        source = "multiplication:3x3:200"
        input = "question"
        target = "rationale+answer"
        [tokenizer]
        kind = "bytes"
        [model]
        preset = "toy"
        [family]
        name = "masked"
        [train]
        tokens = 2000
        [card]
        data = "multiplication:3x3:200"
        input = "question"
        target = "answer"
        rows = 8
        licence = "generated"
        settings = { steps = 2, max_new_tokens = 8 }
        """,
        encoding="utf-8",
    )
    monkeypatch.setenv("REDRAFT_ZOO", str(tmp_path / "zoo"))
    assert redraft("zoo", "build", "tiny", "--out", tmp_path / "runs").code == 0
    assert "tiny" in redraft("zoo", "list").out
    assert redraft("zoo", "verify").code == 0
    card = (tmp_path / "zoo" / "tiny" / "README.md").read_text(encoding="utf-8")
    assert "| 8 |" in card and "generated" in card
