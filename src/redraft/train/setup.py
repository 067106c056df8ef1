"""Builds the parts of a run from a recipe: examples, tokenizer, loader, model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from redraft import adapters, config
from redraft.conversion import convert_family, set_paired
from redraft.data import chat
from redraft.data.columns import Columns
from redraft.data.corpus import Corpus
from redraft.data.examples import Example, Splits, load
from redraft.data.loader import Fit, Loader, Tokenised, batches, fit
from redraft.data.stream_loader import StreamLoader
from redraft.data.tokenising import tokenise
from redraft.data.tokenizer import Tokenizer
from redraft.errors import UserError
from redraft.families import build_family
from redraft.files import atomic_folder
from redraft.generation.answer_lengths import AnswerLengths
from redraft.loading import load as load_model
from redraft.loading import stable_name, stored_dtype
from redraft.model import Model
from redraft.objectives.base import TrainingPhase
from redraft.posttraining import build_method
from redraft.posttraining.base import Weighted
from redraft.presets import shape as preset
from redraft.targets import Target, fingerprint
from redraft.train import optim
from redraft.train.ema import Ema
from redraft.train.parallel import Weights, place
from redraft.train.post_training import TextSampler, check_recipe, fit_data, phases_of, text_sampler
from redraft.train.ranks import Ranks
from redraft.train.recipe import Recipe
from redraft.train.state import State
from redraft.train.tables import DataTable
from redraft.train.text_writer import OwnTextWriter
from redraft.types import Batch

_SAMPLE = 1 << 24  # characters of a streamed corpus that are held in memory to train a tokenizer
_PROBED = 4096  # rows of it that are tokenised before training, for checks and the lengths of answers
VALIDATION_TOKENS = 8192  # of one validation batch, or of one row if that is longer


Doing = Callable[[str, int, int], None]


def _silent(what: str, done: int, total: int) -> None:
    """Nobody is told."""


@dataclass
class Parts:
    """The parts of a run."""

    model: Model
    weights: Weights
    loader: Loader | StreamLoader
    validation: list[Batch]
    rows: int  # training rows; 0: not known, as they are read while training
    skipped: int  # rows skipped because they can't be read or are too long, if the recipe allows it
    data_sha256: str  # of the training texts, in order
    phases: Sequence[TrainingPhase]  # of the run
    sampler: TextSampler | None = None  # generates texts during training; None: the objective needs none
    flops: int = 0  # operations before training: those of writing its texts
    notes: tuple[str, ...] = ()  # what of the data is left out or read in another way than it may seem


def prepare(
    recipe: Recipe,
    work: Path,
    device: torch.device,
    ranks: Ranks | None = None,
    doing: Doing = _silent,
    bfloat16: bool = False,
) -> Parts:
    """Read the data, train or read the tokenizer, build the model and the loader.

    Args:
        work: the run's own folder, where a tokenizer trained by an earlier start of the same run is found, and texts
            that the model has written.
        ranks: the processes of the run; None: one.
        doing: called with what is being done, and how much of it is finished.
        bfloat16: products are in bfloat16.
    Raises:
        UserError: an error in the data, the tokenizer or the model's shape.
    """
    ranks = ranks or Ranks()
    corpus = _corpus(recipe) if recipe.data.streaming else None
    splits = texts(recipe) if corpus is None else _sample(corpus, recipe)
    start = _start(recipe) if recipe.model.from_ else None
    tokenizer = start.tokenizer if start else _tokenizer(recipe, splits.train, work / "tokenizer", ranks)
    chat.adopt(tokenizer, splits.train.rows)
    method = build_method(recipe.objective)
    known = splits.train if corpus is None else _some(splits.train, _PROBED)
    training = (method.tokenise if method else tokenise)(known, tokenizer)
    drafts = start is not None and start.target is not None  # for a model that stays what it is
    paired = start.paired if start is not None and drafts else training.prompts is not None
    model, length = _model(recipe, tokenizer, start, paired)
    phases = phases_of(recipe, model.family, model)
    weights = _placed(model, recipe, device, ranks, phases, bfloat16)
    longest = 0 if training.prompts is None else int((training.lengths - training.prompts).max())
    sampler = text_sampler(recipe, model, splits.train, longest)
    judged = sampler is not None and sampler.judge is not None
    probe = [] if judged else _some(splits.validation, recipe.train.validation_rows)
    checked = tokenise(probe, tokenizer) if probe else None
    training, checked, flops = OwnTextWriter(recipe, model, length, work, ranks, doing).written(training, checked)
    if isinstance(phases[-1].objective, Weighted):
        length = fit_data(training, phases[-1].objective, model, length, sampler)
    loader = _loader(recipe, corpus, training, tokenizer, length, ranks)
    fitted = loader.fit if isinstance(loader, Loader) else fit(training, length, recipe.data.too_long)[1]
    if not judged and not drafts:
        model.answer_lengths = _answer_lengths(training, fitted) or model.answer_lengths
    checks = _checks(checked, tokenizer, length, recipe.data.too_long)
    marks = chat.stray_markers(splits.train.rows, tokenizer)
    if corpus is not None and isinstance(loader, StreamLoader):
        rows, skipped, digest = 0, loader.skipped, corpus.digest()
        told = (_from_sample(recipe, len(splits.train)), marks)
    else:
        left_out = len(splits.train.skipped) + len(fitted.skipped)
        rows, skipped, digest = len(splits.train), left_out, _sha256(splits.train)
        told = (_too_long(fitted), marks)
    ranks.check_equal("The training texts or the tokenizers", (digest, tokenizer.fingerprint))
    notes = tuple(note for note in told if note)
    return Parts(model, weights, loader, checks, rows, skipped, digest, phases, sampler, flops, notes)


def _answer_lengths(training: Tokenised, fitted: Fit) -> AnswerLengths | None:
    """How long the answers are that fit, for pairs."""
    if training.prompts is None:
        return None
    prompts, lengths = training.prompts[fitted.rows], training.lengths[fitted.rows]
    return AnswerLengths.of(prompts, lengths - prompts)


def _checks(checked: Tokenised | None, tokenizer: Tokenizer, length: int, too_long: str) -> list[Batch]:
    """The batches of the validation, if there is one."""
    size = max(VALIDATION_TOKENS, length + 1)
    return [] if checked is None else batches(checked, tokenizer, length, size, too_long)


def fresh_state(recipe: Recipe, parts: Parts, device: torch.device, ranks: Ranks) -> State:
    """The state in which a run begins.

    Raises:
        UserError: the optimizer needs a package that is not installed, or it can't be sharded.
    """
    table, network = recipe.train, parts.model.network
    if parts.weights.sharded and table.optimizer == "adamw8bit":
        raise UserError("adamw8bit can't be sharded.", "Use --set train.optimizer=adamw, or train.parallel=ddp.")
    return State(
        network=network.train(),
        optimizer=optim.build(table.optimizer, network, table.lr, table.betas, table.weight_decay),
        ema=Ema(network, table.ema) if table.ema else None,
        loader=parts.loader,
        noise=torch.Generator(),
        device=device,
        ranks=ranks,
        flops=parts.flops if ranks.is_writer else 0,
    )


def _placed(
    model: Model,
    recipe: Recipe,
    device: torch.device,
    ranks: Ranks,
    phases: Sequence[TrainingPhase],
    bfloat16: bool,
) -> Weights:
    """Put the network on its device, ready to be trained."""
    network, train = model.network, recipe.train
    network.requires_grad_(True).set_dropout(train.dropout)
    if ranks.world == 1 or train.parallel == "ddp":  # else its parts are moved one by one
        network.to(device)
    elif network.companion is not None:
        network.companion.to(device)
    if recipe.lora is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(train.seed)
            adapters.attach(model, recipe.lora, recipe.start, recipe.lora.packing)
    network.activation_checkpointing = train.checkpointing  # type: ignore[assignment] # its choices
    if train.compile:  # block by block: the rest depends on the data
        for block in network.all_blocks():
            block.compile(dynamic=True)
    return place(network, train.parallel, ranks, device, [phase.objective for phase in phases], bfloat16)


def _loader(
    recipe: Recipe, corpus: Corpus | None, training: Tokenised, tokenizer: Tokenizer, length: int, ranks: Ranks
) -> Loader | StreamLoader:
    """The batches of training, from memory or from a corpus that is read again in every pass."""
    data, train = recipe.data, recipe.train
    share = {"seed": train.seed, "rank": ranks.rank, "world": ranks.world}
    if corpus is None:
        return Loader(training, tokenizer, length, train.batch_tokens, **share, too_long=data.too_long)
    size = int(data.buffer * (1 << 20))
    return StreamLoader(corpus, tokenizer, length, train.batch_tokens, size, **share, too_long=data.too_long)


def _from_sample(recipe: Recipe, rows: int) -> str:
    """What is known of a streamed corpus from a sample of it alone."""
    known = ["the lengths of answers"]
    if not recipe.model.from_ and recipe.tokenizer.kind == "bpe":
        known.insert(0, "the tokenizer")
    return f"rows are read while training; {' and '.join(known)} come from a sample of {rows:,} of them"


def _too_long(fit: Fit) -> str:
    """Which rows were left out or cut, in words; empty if none."""
    parts = []
    if fit.skipped:
        parts.append(f"{len(fit.skipped):,} rows are too long and were left out (the first: {fit.skipped[0]})")
    if fit.truncated:
        parts.append(f"{len(fit.truncated):,} rows lost the beginning of their prompt (the first: {fit.truncated[0]})")
    return "; ".join(parts)


def texts(recipe: Recipe) -> Splits:
    """The recipe's examples; with ``data.streaming`` a sample of them. Test rows are not used in training.

    Raises:
        UserError: the recipe names no data, or it can't be read.
    """
    data = recipe.data
    if data.streaming:
        return _sample(_corpus(recipe), recipe)
    source, named = _source(recipe)
    root = data.data_root or None
    fractions = (1.0, 0.0, 0.0) if data.validation else data.fractions
    method = build_method(recipe.objective)
    rows = method.rows() if method else None
    return load(source, named, data_root=root, fractions=fractions, skip_bad_rows=data.skip_bad_rows, rows=rows)


def _corpus(recipe: Recipe) -> Corpus:
    data = recipe.data
    source, named = _source(recipe)
    root = data.data_root or None
    fractions = (1.0, 0.0, 0.0) if data.validation else data.fractions
    return Corpus.open(source, named, data_root=root, fractions=fractions, skip_bad_rows=data.skip_bad_rows)


def _sample(corpus: Corpus, recipe: Recipe) -> Splits:
    trains = recipe.tokenizer.kind == "bpe" and not recipe.model.from_
    return corpus.sample(_SAMPLE if trains else _SAMPLE >> 4, recipe.train.validation_rows)


def _source(recipe: Recipe) -> tuple[str | dict[str, str], Columns | None]:
    """The source of the data, and the columns that the recipe names."""
    data = recipe.data
    if not data.source:
        raise UserError("[data] has no source.", "Set data.source to a file, a folder or a name on the hub.")
    check_recipe(recipe)
    columns = Columns(text=data.text, input=data.input, target=data.target)
    named = columns if str(columns) else None
    source: str | dict[str, str] = recipe.path(data.source)
    if data.validation:
        source = {"train": recipe.path(data.source), "validation": recipe.path(data.validation)}
    return source, named


def _tokenizer(recipe: Recipe, training: Sequence[Example], folder: Path, ranks: Ranks) -> Tokenizer:
    table = recipe.tokenizer
    if table.kind == "bytes":
        return Tokenizer.bytes()
    if table.kind == "file":
        return Tokenizer.load(recipe.path(table.path))

    def train() -> None:
        if not folder.exists():
            whole = (text for example in training for text in (example.prompt, example.target) if text)
            with atomic_folder(folder) as new:
                Tokenizer.train(whole, table.vocab_size).save(new)

    ranks.once(train)
    return Tokenizer.load(folder)


def _start(recipe: Recipe) -> Model:
    """The checkpoint to start from, converted to the recipe's family."""
    if recipe.model.config:
        raise UserError("[model] has both 'from' and 'config'.", "Remove one: a checkpoint brings its own shape.")
    found = load_model(recipe.start, device="cpu", dtype=_base_dtype(recipe))
    conditioned = found.network.config.self_conditioning
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)  # of new layers
        model = convert_family(found, recipe.family)
    if model.family.needs_target:
        if recipe.lora is not None:
            raise UserError("A drafter has no adapter: all of its few weights are trained.", "Leave out [lora].")
        if recipe.data.streaming:
            raise UserError("A drafter is trained on texts that its target writes first.", "Leave out data.streaming.")
        model.target = found.target or Target(stable_name(recipe.start), fingerprint(found.network))
    if recipe.lora is not None and model.spec.network.self_conditioning and not conditioned:
        raise UserError(
            "An adapter can't add self-conditioning: the new projection is not one of the adapted matrices.",
            "Train all weights: leave out [lora].",
        )
    return model


def _base_dtype(recipe: Recipe) -> torch.dtype:
    """The type in which a checkpoint is loaded: float32 if it is trained, and as ``Lora.base_dtype`` says if frozen."""
    if recipe.lora is None:
        return torch.float32
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return named.get(recipe.lora.base_dtype) or stored_dtype(recipe.start)


def _model(recipe: Recipe, tokenizer: Tokenizer, start: Model | None, paired: bool) -> tuple[Model, int]:
    """A new model of the recipe's shape, or the checkpoint to start from; and the longest row of training."""
    family = start.family if start else build_family(recipe.family)[1]
    rest = family.spec(tokenizer).network.attention.block - 1  # of an answer's last block
    spare = max(1, rest, family.spare)  # 1: a window's <bos>
    table, needed = recipe.model, recipe.data.length + spare
    if start is None:
        shape = preset(table.preset, tokenizer.vocab_size, table.network)
        changes = {"max_length": max(needed, shape.max_length), **table.config}
        shape = config.build(type(shape), config.to_mapping(shape) | changes, "[model.config]")
        fresh = Model.fresh(recipe.family, tokenizer, shape, paired, recipe.train.seed)
        fresh.trained_length = recipe.data.length
        return fresh, recipe.data.length
    set_paired(start, paired)
    room = start.network.config.max_length
    if room < needed and recipe.data.length == DataTable.length:
        return start, room - spare
    if room < needed:
        raise UserError(
            f"[data] length = {recipe.data.length} exceeds this model's context ({room - spare} tokens per row).",
            f"Lower it: --set data.length={room - spare}.",
        )
    if start.trained_length:
        start.trained_length = max(start.trained_length, recipe.data.length)
    return start, recipe.data.length


def _some(examples: Sequence[Example], most: int) -> list[Example]:
    """At most ``most`` examples, evenly spaced, the same every time."""
    if len(examples) <= most:
        return list(examples)
    return [examples[i * len(examples) // most] for i in range(most)]


def _sha256(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.prompt}\x00{example.target}\x01".encode())
        if example.rejected:
            digest.update(f"{example.rejected}\x02".encode())
    return digest.hexdigest()
