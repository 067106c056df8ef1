"""A device without float64 (Apple's MPS): what computes in float64 elsewhere finds another way, with the same texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from redraft import runtime
from redraft.train.loop import train
from redraft.train.recipe import Recipe
from tests import pretend_device
from tests.device.counting import RECIPES, tiny
from tests.device.flows.conftest import FULL, Models, texts


@pytest.fixture(autouse=True)
def _narrow(log: pretend_device.Log, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "float64", False)
    monkeypatch.setattr(runtime, "has_float64", lambda where: where.type == "cpu")
    yield


WRITERS = {
    "masked-pairs": "confidence",
    "uniform-text": "predictor_corrector",
    "sedd-pairs": "analytic",
    "edit-pairs": "edit_flow",
}


@pytest.mark.parametrize("model", WRITERS)
def test_texts_are_drawn(models: Models, model: str) -> None:
    found = models.same(model, lambda m: texts(m, sampler=WRITERS[model], temperature=0.8, top_p=0.9))
    assert not isinstance(found, str), found


@pytest.mark.parametrize("recipe", ["uniform", "edit", "sedd", "masked", "d3pm", "embedding"] if FULL else ["uniform"])
def test_a_recipe_trains(recipe: str, tmp_path: Path) -> None:
    path = RECIPES / "toy" / f"{recipe}.toml"
    assert train(Recipe.load(path, tiny(Recipe.load(path))), tmp_path / "run", device="cuda").steps >= 2
