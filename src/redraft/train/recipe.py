"""A recipe: a complete training run as data, in TOML."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft import config
from redraft.curricula import build_curriculum
from redraft.errors import UserError
from redraft.families import build_family
from redraft.lora import Lora
from redraft.objectives.conversion import build_conversions
from redraft.posttraining import build_method
from redraft.presets import preset
from redraft.train.tables import DataTable, ModelTable, TokenizerTable, TrainTable

CARD = "card"  # a table about the finished checkpoint, for ``redraft zoo``; training doesn't read it

# Settings that do not affect the trained model, so that a resumed run may change them.
_FREE = {
    "data.data_root",
    "data.source",
    "data.validation",
    "tokenizer.path",
    "train.save_every_seconds",
    "train.save_every_tokens",
    "train.activation_checkpointing",
    "train.parallel",
}


@dataclass(frozen=True)
class Recipe:
    """Data, tokenizer, model, family and training: everything that a run depends on, except the machine.

    ``train.tables`` declares the settings of each table.
    """

    data: DataTable
    train: TrainTable
    tokenizer: TokenizerTable = field(default_factory=TokenizerTable)
    model: ModelTable = field(default_factory=ModelTable)
    family: dict[str, Any] = field(default_factory=lambda: {"name": "masked"})
    lora: Lora | None = None  # train adapters instead of all weights
    curriculum: dict[str, Any] = field(default_factory=dict)  # how attention changes in training: a file of curricula/
    objective: dict[str, Any] = field(
        default_factory=dict
    )  # posttraining/ or objectives/conversion/: another objective
    folder: str = field(default="", compare=False)  # of the TOML file, for relative paths; not saved

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a TOML file (and what it ``extends``); ``overrides`` are ``["train.lr=1e-3", ...]``.

        Raises:
            UserError: no such file, not TOML, an unknown table or key, a wrong value.
        """
        path = Path(path)
        values = config.read_toml(path)
        values.pop("folder", None)
        return cls.of(values, str(path), overrides, folder=str(path.resolve().parent))

    @classmethod
    def of(
        cls, values: Mapping[str, Any], where: str = "recipe", overrides: Sequence[str] = (), folder: str = ""
    ) -> Recipe:
        """A recipe from plain tables, as ``load`` reads them from TOML.

        Raises:
            UserError: an unknown table or key, or a wrong value.
        """
        values = {key: value for key, value in values.items() if key != CARD}
        for key, value in config.parse_options(list(overrides), "--set").items():
            values = config.merge(values, _nest(key, value))
        model = dict(values.get("model", {}))
        if "from" in model:
            model["from_"] = model.pop("from")
        missing = [table for table in ("data", "train") if table not in values]
        if missing:
            raise UserError(f"{where}: the table [{missing[0]}] is missing.", "Add it to the recipe.")
        recipe = config.build(cls, {**values, "model": model, "folder": folder}, where)
        build_family(recipe.family)  # so that an error in [family] is raised before the data are read
        build_curriculum(recipe.curriculum)
        build_method(recipe.objective)
        build_conversions(recipe.objective)
        if not recipe.model.from_:
            preset(recipe.model.preset, vocab_size=1)
        if recipe.data.streaming and recipe.train.passes:
            what = f"{where}: The size of a pass is not known before training with data.streaming."
            raise UserError(what, "Give a budget of tokens or minutes in place of passes.")
        if recipe.lora is not None and not recipe.model.from_:
            raise UserError("[lora] needs a checkpoint to adapt.", "Set model.from.")
        return recipe

    def tables(self) -> dict[str, Any]:
        """Plain nested values, as in TOML, with every default written out."""
        values = config.to_mapping(self)
        del values["folder"]
        values["model"]["from"] = values["model"].pop("from_")
        return values

    def to_toml(self) -> str:
        """The resolved recipe as TOML, which ``Recipe.load`` reads."""
        return dump_toml(self.tables())

    def difference(self, other: Mapping[str, Any], where: str = "the recipe of the run") -> list[str]:
        """``["train.lr: 0.001 -> 0.002", ...]``: what changes from the tables of another run to this recipe.

        Keys that either leaves out have their defaults, so that a run can be resumed after new settings were added.
        """
        new, old = _flat(self._whole()), _flat(Recipe.of(other, where)._whole())
        keys = sorted((new.keys() | old.keys()) - _FREE)
        return [f"{k}: {old.get(k, 'unset')} -> {new.get(k, 'unset')}" for k in keys if old.get(k) != new.get(k)]

    def _whole(self) -> dict[str, Any]:
        """``tables``, with the defaults of the family's fields."""
        name, family = build_family(self.family)
        return {**self.tables(), "family": {"name": name, **config.to_mapping(family)}}

    def path(self, name: str) -> str:
        """The path of a source or file, found as ``DataTable`` describes; else the name unchanged."""
        for root in (self.data.data_root, os.environ.get("REDRAFT_DATA", ""), self.folder):
            place = Path(root).expanduser() / name
            if root and (place.exists() or any(place.parent.glob(f"{place.name}.*"))):
                return str(place)
        return name

    @property
    def start(self) -> str:
        """The checkpoint to start from: a folder found in the same way as data, else its name."""
        roots = (self.data.data_root, os.environ.get("REDRAFT_DATA", ""), self.folder)
        places = [Path(root).expanduser() / self.model.from_ for root in roots if root]
        return next((str(place) for place in places if place.exists()), self.model.from_)


def dump_toml(tables: Mapping[str, Any]) -> str:
    """Nested tables of text, numbers, booleans and lists as TOML; None values are left out."""
    return "\n".join(_toml_lines(tables, ())) + "\n"


def _toml_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    lines = [f"{key} = {_toml_value(value)}" for key, value in plain.items()]
    if path and (lines or not table):
        lines = ["", f"[{'.'.join(path)}]", *lines]
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _toml_lines(value, (*path, key))
    return lines


def _toml_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml_value, value))}]"
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _nest(key: str, value: Any) -> dict[str, Any]:
    """``"train.lr", 1`` -> ``{"train": {"lr": 1}}``."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
