"""From a recipe to the parts of a run: texts, tokenizer, loader, model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from redraft import adapters, config
from redraft.conversion import become, go_on_with
from redraft.data.examples import Columns, Example, Splits, load
from redraft.data.loader import Loader, batches, tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError, suggest
from redraft.families import build_family
from redraft.files import atomic_folder
from redraft.loading import load as load_model
from redraft.model import Model
from redraft.presets import shape as preset
from redraft.train.recipe import DataTable, Recipe
from redraft.types import Batch

_PROBE_TOKENS = 8192  # of one validation batch, or of one row if that is longer


@dataclass
class Parts:
    """What a run starts from."""

    model: Model
    loader: Loader
    validation: list[Batch]
    rows: int  # training rows
    skipped: int  # rows left out because they can't be read or are too long, where the recipe allows it
    data_sha256: str  # of the training texts, in order


def prepare(recipe: Recipe, work: Path, device: torch.device) -> Parts:
    """Read the data, make or take up the tokenizer, build the model and the loader.

    Args:
        work: the run's own folder; a tokenizer trained by an earlier start of the same run is taken from there.
    Raises:
        UserError: whatever is wrong with the data, the tokenizer or the shape.
    """
    splits = texts(recipe)
    start = _start(recipe) if recipe.model.from_ else None
    tokenizer = start.tokenizer if start else _tokenizer(recipe, splits.train, work / "tokenizer")
    training = tokenise(splits.train, tokenizer)
    model, length = _model(recipe, tokenizer, start, conditional=training.prompts is not None)
    model.network.to(device).requires_grad_(True).set_dropout(recipe.train.dropout)
    if recipe.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.train.seed)
            adapters.attach(model, recipe.lora, recipe.start)
    model.network.recompute = recipe.train.recompute
    if recipe.train.compile:  # block by block: what is around them depends on the data
        for block in model.network.every_block():
            block.compile(dynamic=True)
    data, train = recipe.data, recipe.train
    loader = Loader(training, tokenizer, length, train.batch_tokens, train.seed, too_long=data.too_long)
    probe = _some(splits.validation, train.validation_rows)
    size = max(_PROBE_TOKENS, length + 1)
    checks = batches(tokenise(probe, tokenizer), tokenizer, length, size, data.too_long) if probe else []
    skipped = len(splits.train.skipped) + len(loader.fit.skipped)
    return Parts(model, loader, checks, len(splits.train), skipped, _sha256(splits.train))


def texts(recipe: Recipe) -> Splits:
    """The recipe's examples. Test rows, where the source has them or they are cut from it, take no part in training."""
    data = recipe.data
    if not data.source:
        raise UserError("[data] names no source.", "Set data.source to a file, a folder or a hub name.")
    columns = Columns(text=data.text, input=data.input, target=data.target)
    named = columns if str(columns) else None
    source: str | dict[str, str] = recipe.path(data.source)
    if data.validation:
        source = {"train": recipe.path(data.source), "validation": recipe.path(data.validation)}
    fractions = (1.0, 0.0, 0.0) if data.validation else data.fractions
    root = data.data_root or None
    return load(source, named, data_root=root, fractions=fractions, skip_bad_rows=data.skip_bad_rows)


def _tokenizer(recipe: Recipe, training: Sequence[Example], folder: Path) -> Tokenizer:
    table = recipe.tokenizer
    if table.kind == "bytes":
        return Tokenizer.bytes()
    if table.kind == "file":
        return Tokenizer.load(recipe.path(table.path))
    if table.kind != "bpe":
        raise UserError(f"unknown tokenizer kind '{table.kind}'.", suggest(table.kind, ("bpe", "bytes", "file")))
    if not folder.exists():
        whole = (text for example in training for text in (example.prompt, example.target) if text)
        with atomic_folder(folder) as new:
            Tokenizer.train(whole, table.vocab_size).save(new)
    return Tokenizer.load(folder)


def _start(recipe: Recipe) -> Model:
    """The checkpoint to begin with, as one of the recipe's family."""
    if recipe.model.config:
        raise UserError("[model] has both 'from' and 'config'.", "A checkpoint brings its own shape: drop one.")
    found = load_model(recipe.start, device="cpu")
    listened = getattr(found.network.config, "guess", False)
    model = become(found, recipe.family)
    if recipe.lora is not None and model.spec.guesses and not listened:
        raise UserError(
            "an adapter can't teach a model self-conditioning: its new map stands beside the matrices adapted.",
            "Train all weights: leave out [lora].",
        )
    return model


def _model(recipe: Recipe, tokenizer: Tokenizer, start: Model | None, conditional: bool) -> tuple[Model, int]:
    """A fresh model of the recipe's shape, or the checkpoint that it begins with; and the longest row it is given."""
    family = start.family if start else build_family(recipe.family)[1]
    beyond = family.spec(tokenizer).attend.block - 1  # of an answer's last block
    spare = max(1, beyond, getattr(family, "spare", 0))  # 1: a window's <bos>
    table, needed = recipe.model, recipe.data.length + spare
    if start is None:
        shape = preset(table.preset, tokenizer.vocab_size, table.network)
        changes = {"max_length": max(needed, shape.max_length), **table.config}
        shape = config.build(type(shape), config.to_mapping(shape) | changes, "[model.config]")
        return Model.fresh(recipe.family, tokenizer, shape, conditional, recipe.train.seed), recipe.data.length
    go_on_with(start, conditional)
    room = start.network.config.max_length
    if room < needed and recipe.data.length == DataTable.length:
        return start, room - spare
    if room < needed:
        raise UserError(
            f"[data] length = {recipe.data.length} is more than this model takes ({room - spare} tokens a row).",
            f"Lower it: --set data.length={room - spare}.",
        )
    return start, recipe.data.length


def _some(examples: Sequence[Example], most: int) -> list[Example]:
    """At most ``most`` examples, spread evenly over all and the same ones every time."""
    if len(examples) <= most:
        return list(examples)
    return [examples[i * len(examples) // most] for i in range(most)]


def _sha256(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.prompt}\x00{example.target}\x01".encode())
    return digest.hexdigest()
