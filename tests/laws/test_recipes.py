"""Every recipe resolves, and runs two updates at a tiny size to a model that loads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import redraft
from redraft import config
from redraft.train.loop import train
from redraft.train.recipe import Recipe

RECIPES = Path(__file__).parents[2] / "recipes"
TRAINING = sorted(p for folder in ("toy", "pretrain", "finetune", "zoo") for p in (RECIPES / folder).glob("*.toml"))


def name(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def tiny(recipe: Recipe) -> list[str]:
    """Overrides that keep the family, optimizer and data format of a recipe, and make the rest small."""
    source = "novels" if recipe.data.text else "tatoeba.en-de"
    if recipe.data.source.endswith(".mix.toml"):
        source = "two-ways.mix.toml"
    generated = recipe.data.source.startswith("multiplication:")
    return [
        "data.source=multiplication:3x3:500" if generated else f"data.source={RECIPES}/toy/data/{source}",
        "tokenizer.vocab_size=320",
        "model.preset=toy",
        f"train.batch_tokens={max(1024, recipe.data.length + 1)}",
        "train.passes=0",
        "train.minutes=0",
        "train.tokens=1100",
        "train.validation_rows=4",
        "train.log_every=1",
        "train.threads=1",
        *(["family.texts=16"] if recipe.family["name"] == "drafter" else []),
        *(["objective.texts=16"] if "texts" in recipe.objective else []),
    ]


def test_there_are_recipes() -> None:
    assert {path.parent.name for path in TRAINING} >= {"toy", "pretrain"}


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_a_recipe_runs_two_updates_at_tiny_size(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    small = Recipe.load(path, tiny(recipe))
    result = train(small, tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "train" / "metrics.jsonl").read_text().splitlines()]
    assert result.steps >= 2 and result.validation is not None
    assert [line["kind"] for line in lines].count("update") == result.steps
    model = redraft.load(tmp_path / "run", device="cpu")
    assert model.family_name == recipe.family["name"]
    assert model.paired == (recipe.data.text is None)
    assert model.network.parameter_count <= 7_000_000


FAMILIES = ("masked", "uniform", "sedd", "d3pm", "expand", "edit")
PEERS = [p for p in TRAINING if p.stem.rpartition("-")[2] in FAMILIES and not Recipe.load(p).model.from_]


@pytest.mark.parametrize("path", PEERS, ids=name)
def test_the_two_families_of_a_pair_differ_in_nothing_else(path: Path) -> None:
    peer = path.with_name(path.name.replace(path.stem.rpartition("-")[2], "autoregressive"))
    one, other = (Recipe.load(p).tables() for p in (path, peer))
    del one["family"], other["family"]
    assert one == other


@pytest.mark.parametrize("path", TRAINING, ids=name)
def test_extended_recipes_exist(path: Path) -> None:
    assert config.read_toml(path)["data"]["source"]
