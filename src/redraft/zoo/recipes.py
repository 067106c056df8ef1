"""The recipes of shipped checkpoints, ``recipes/zoo/NAME.toml``: training tables and a table ``[card]``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from redraft import config
from redraft.errors import UserError, suggest
from redraft.evaluation.config import Evaluation
from redraft.shipped import zoo_folder
from redraft.train.recipe import Recipe
from redraft.zoo.card import CardTable

RECIPES = Path("recipes/zoo")


@dataclass(frozen=True)
class Entry:
    """A checkpoint that the project ships, or can build."""

    name: str
    recipe: Recipe
    card: CardTable

    @property
    def folder(self) -> Path:
        """Where the checkpoint is, or will be."""
        return zoo_folder() / self.name

    @property
    def evaluation(self) -> Evaluation:
        """What is measured."""
        card, root = self.card, str(zoo_folder())
        given = (("text", card.text), ("input", card.input), ("target", card.target), ("task", card.task))
        values = {"data": card.data, "data_root": root, "rows": card.rows, **dict(given)}
        return config.build(Evaluation, values, f"{self.name} [card]")


def recipe_names() -> list[str]:
    """The names of all recipes that have a card."""
    folder = zoo_folder().parent / RECIPES
    return [path.stem for path in sorted(folder.glob("*.toml")) if "card" in config.read_toml(path)]


def entry(name: str) -> Entry:
    """The recipe and the card of a checkpoint.

    Raises:
        UserError: there is no such recipe, it has no table ``[card]``, or one of its tables is wrong.
    """
    path = zoo_folder().parent / RECIPES / f"{name}.toml"
    if not path.is_file():
        raise UserError(f"There is no recipe '{RECIPES / name}.toml'.", suggest(name, recipe_names()))
    values = config.read_toml(path)
    if "card" not in values:
        raise UserError(f"{path} has no table [card].", "Add it: data, licence and settings (see the other recipes).")
    card = config.build(CardTable, values["card"], f"{path} [card]")
    return Entry(name, Recipe.load(path), card)
