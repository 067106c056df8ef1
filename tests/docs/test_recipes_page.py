"""docs/recipes.md lists every key of a recipe, as its tables declare them.

``python -m tests.docs.test_recipes_page`` writes the list anew.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from redraft.train.recipe import Recipe
from redraft.train.tables import reference

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
_LIST = re.compile(r"(?<=<!-- recipe -->\n).*?(?=<!-- /recipe -->)", re.DOTALL)


def test_the_page_lists_every_key() -> None:
    [listed] = _LIST.findall(PAGE.read_text(encoding="utf-8"))
    assert listed == f"{reference()}\n", "run: python -m tests.docs.test_recipes_page"


def test_every_key_of_a_resolved_recipe_is_listed() -> None:
    tables = Recipe.of({"data": {"source": "x"}, "train": {"tokens": 1}, "lora": {}, "model": {"from": "x"}}).tables()
    sections = dict(re.findall(r"### `\[(\w+)\]`\n(.*?)(?=\n### |\Z)", reference(), re.DOTALL))
    assert sections.keys() == tables.keys()
    for name, values in tables.items():
        assert re.findall(r"^\| `(\w+)` \|", sections[name], re.MULTILINE) == ([*values] or ["name"]), name


def test_the_example_is_a_recipe() -> None:
    [example] = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert Recipe.of(tomllib.loads(example)).train.keep_best


if __name__ == "__main__":
    PAGE.write_text(_LIST.sub(lambda _: f"{reference()}\n", PAGE.read_text(encoding="utf-8")), encoding="utf-8")
