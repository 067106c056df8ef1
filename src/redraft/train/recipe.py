"""One complete training run as data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redraft import config
from redraft.courses import build_course
from redraft.errors import UserError
from redraft.families import build_family
from redraft.models.parts.lora import Lora
from redraft.presets import preset


@dataclass(frozen=True)
class DataTable:
    """What to train on.

    ``source`` is whatever ``data.examples.load`` takes: a file, a folder, the common beginning of files
    ``NAME.train.jsonl.gz``..., a hub name. A relative name is looked for in ``data_root``, the folder that the
    environment variable REDRAFT_DATA names, the recipe's own folder and the current folder, in this order.
    """

    source: str = ""
    validation: str = ""  # a source of its own; empty: the validation split of ``source``
    data_root: str = ""
    fractions: tuple[float, float, float] = (0.9, 0.05, 0.05)  # train, validation, test, where ``source`` has no splits
    text: str | None = None  # column of plain text
    input: str | None = None  # column of prompts ...
    target: str | None = None  # ... and of what should follow them; all None: recognised by their names
    skip_bad_rows: bool = False
    # Tokens of the longest row; plain text is cut into windows of this length. Unset: 256, or what a checkpoint to
    # fine-tune takes, if that is less.
    length: int = 256
    too_long: str = "error"  # pairs longer than that: error | skip | truncate_prompt


@dataclass(frozen=True)
class TokenizerTable:
    """``bpe``: byte-level BPE trained on the training text. ``bytes``: no training. ``file``: ``path`` is read."""

    kind: str = "bpe"
    vocab_size: int = 8000
    path: str = ""


@dataclass(frozen=True)
class ModelTable:
    """A preset's shape with the fields named in ``config`` changed, or a checkpoint to fine-tune (``from`` in TOML).

    A checkpoint brings its shape and tokenizer with it; its weights are the starting point. It is converted first where
    the recipe's family is not its own (``conversion.become``).
    ``network`` is a file of ``models/``; presets of others than the transformer have as many weights, within 1 %.
    """

    network: str = "transformer"
    preset: str = "7m"
    config: dict[str, Any] = field(default_factory=dict)
    from_: str = ""


@dataclass(frozen=True)
class TrainTable:
    """The budget, the optimizer and what is written when.

    The run ends as soon as the first of the budgets that are set (``tokens``, ``passes``, ``minutes``) is spent, and
    the learning rate is scheduled over that same share. Tokens count prompt and target, without padding.
    """

    tokens: int = 0
    passes: float = 0.0  # passes over the training rows
    minutes: float = 0.0  # wall clock, over all restarts
    batch_tokens: int = 4096  # of one forward pass
    accumulate: int = 1  # forward passes per update
    lr: float = 1e-3
    schedule: str = "cosine"  # cosine | wsd | constant
    warmup: float = 0.05  # below 1: share of the budget; else tokens
    min_lr: float = 0.05  # share of lr that is left at the end
    weight_decay: float = 0.1  # of matrices
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # greatest norm of the gradient; 0 is off
    ema: float = 0.0  # decay of the averaged weights; 0 is off
    dropout: float = 0.0
    drop_prompt: float = 0.0  # share of rows that lose their prompt: what classifier-free guidance needs
    dtype: str = "auto"  # auto | float32 | bfloat16; auto is bfloat16 where that is at least twice as fast, as measured
    compile: bool = False  # torch.compile: faster steps after some ten seconds of compiling
    recompute: bool = False  # activation checkpointing: less memory, about a third more time
    threads: int = 0  # CPU threads; 0 leaves them alone
    seed: int = 0
    validate_every: int = 0  # tokens between validations; 0: at the end only
    validation_rows: int = 512
    keep_best: bool = False  # the result is the model of the best validation, not the last
    save_every_seconds: float = 120.0
    save_every_tokens: int = 0  # 0 is off
    log_every: int = 20  # updates

    def __post_init__(self) -> None:
        if self.tokens <= 0 and self.passes <= 0 and self.minutes <= 0:
            remedy = "Give one of --tokens, --passes and --minutes, or set it in the recipe's [train]."
            raise UserError("training has no budget.", remedy)
        for name, low in (("batch_tokens", 1), ("accumulate", 1), ("log_every", 1)):
            if getattr(self, name) < low:
                raise UserError(f"[train] {name} = {getattr(self, name)} must be at least {low}.")
        for name in ("ema", "dropout", "drop_prompt", "min_lr"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"[train] {name} = {getattr(self, name)} must be at least 0 and below 1.")
        for name, known in (("dtype", ("auto", "float32", "bfloat16")), ("schedule", ("cosine", "wsd", "constant"))):
            if getattr(self, name) not in known:
                raise UserError(f"[train] {name} = '{getattr(self, name)}' is not one of {', '.join(known)}.")


# Where a recipe's files lie and how often it reports change nothing in what is learnt: a restart may differ in these.
_FREE = {"data.data_root", "data.source", "data.validation", "train.save_every_seconds", "train.save_every_tokens"}


@dataclass(frozen=True)
class Recipe:
    """Data, tokenizer, model, family and training: all that a run depends on, besides the machine."""

    data: DataTable
    train: TrainTable
    tokenizer: TokenizerTable = field(default_factory=TokenizerTable)
    model: ModelTable = field(default_factory=ModelTable)
    family: dict[str, Any] = field(default_factory=lambda: {"name": "masked"})
    lora: Lora | None = None  # train adapters of this kind instead of all weights
    course: dict[str, Any] = field(default_factory=dict)  # how attention changes on the way: a file of courses/
    folder: str = field(default="", compare=False)  # of the TOML file, for relative paths; not part of the recipe

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
        """Read a TOML file (and what it ``extends``); ``overrides`` are ``["train.lr=1e-3", ...]``.

        Raises:
            UserError: no such file, not TOML, an unknown table or option, a value of the wrong type.
        """
        path = Path(path)
        values = config.read_toml(path)
        values.pop("folder", None)
        return cls.of(values, str(path), overrides, folder=str(path.resolve().parent))

    @classmethod
    def of(
        cls, values: Mapping[str, Any], where: str = "recipe", overrides: Sequence[str] = (), folder: str = ""
    ) -> Recipe:
        """A recipe from plain tables, as ``load`` reads them from TOML."""
        for key, value in config.parse_options(list(overrides), "--set").items():
            values = config.merge(values, _nest(key, value))
        model = dict(values.get("model", {}))
        if "from" in model:
            model["from_"] = model.pop("from")
        missing = [table for table in ("data", "train") if table not in values]
        if missing:
            raise UserError(f"{where}: the table [{missing[0]}] is missing.")
        recipe = config.build(cls, {**values, "model": model, "folder": folder}, where)
        build_family(recipe.family)  # an error in [family] shows now, not after the data are read
        build_course(recipe.course)
        if not recipe.model.from_:
            preset(recipe.model.preset, vocab_size=1)
        if recipe.lora is not None and not recipe.model.from_:
            raise UserError("[lora] adapts a checkpoint, and [model] names none.", "Set model.from.")
        return recipe

    def tables(self) -> dict[str, Any]:
        """Plain nested values, as in TOML, every default written out."""
        values = config.to_mapping(self)
        del values["folder"]
        values["model"]["from"] = values["model"].pop("from_")
        return values

    def to_toml(self) -> str:
        """The resolved recipe as TOML; ``Recipe.load`` gives it back."""
        return dump_toml(self.tables())

    def difference(self, other: Mapping[str, Any]) -> list[str]:
        """``["train.lr: 0.001 -> 0.002", ...]`` from the tables of another run to this recipe.

        Options that either leaves out have their defaults, so that a run outlives the coming of new ones.
        """
        new, old = _flat(self._whole()), _flat(Recipe.of(other, "the recipe of the run")._whole())
        keys = sorted((new.keys() | old.keys()) - _FREE)
        return [f"{k}: {old.get(k, 'unset')} -> {new.get(k, 'unset')}" for k in keys if old.get(k) != new.get(k)]

    def _whole(self) -> dict[str, Any]:
        """``tables``, and the defaults of the family's options."""
        name, family = build_family(self.family)
        return {**self.tables(), "family": {"name": name, **config.to_mapping(family)}}

    def path(self, name: str) -> str:
        """A source or file as found by ``DataTable``'s rule, else the name unchanged."""
        for root in (self.data.data_root, os.environ.get("REDRAFT_DATA", ""), self.folder):
            place = Path(root).expanduser() / name
            if root and (place.exists() or any(place.parent.glob(f"{place.name}.*"))):
                return str(place)
        return name

    @property
    def start(self) -> str:
        """The checkpoint to begin with: a folder as found by the same rule, else its name."""
        roots = (self.data.data_root, os.environ.get("REDRAFT_DATA", ""), self.folder)
        places = [Path(root).expanduser() / self.model.from_ for root in roots if root]
        return next((str(place) for place in places if place.is_dir()), self.model.from_)


def dump_toml(tables: Mapping[str, Any]) -> str:
    """Tables of strings, numbers, booleans, lists and tables as TOML text; None values are left out."""
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
