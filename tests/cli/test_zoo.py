"""Shipped checkpoints are intact, small, have a model card, and load."""

from __future__ import annotations

from pathlib import Path

import pytest

ZOO = Path(__file__).parents[2] / "zoo"
MODELS = sorted(path.parent for path in ZOO.glob("*/config.json"))
MOST_BYTES = 8_000_000

pytestmark = pytest.mark.skipif(not MODELS, reason="no shipped checkpoints in zoo/")


def test_every_file_is_listed_and_intact() -> None:
    from redraft.cli._zoo import check

    states = check(ZOO)
    assert set(states.values()) == {"intact"}
    assert set(states) == {str(path.relative_to(ZOO)) for model in MODELS for path in model.iterdir()}


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
