"""Build a shipped checkpoint: train by its recipe, store the weights as int8, measure it, and write its card."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable
from pathlib import Path

import redraft
from redraft import config
from redraft.errors import UserError
from redraft.evaluation.evaluate import EvaluationResult, evaluate
from redraft.files import check_writable, read_json, write_atomically
from redraft.loading import outline
from redraft.shipped import zoo_folder
from redraft.train.logging import Watcher, describe
from redraft.train.loop import train
from redraft.zoo.card import CARD, Record, Training, measured, page, read_record
from redraft.zoo.files import list_checksums
from redraft.zoo.recipes import RECIPES, Entry, entry

Log = Callable[[str], None]

LARGEST = 8_000_000  # bytes of a shipped checkpoint
_STORAGE = "int8"
_PACKAGES = ("torch", "tokenizers", "sacrebleu")  # whose versions may change a figure


def build(name: str, out: Path, device: str, log: Log) -> Record:
    """Train a checkpoint, or resume its training, and put it into the zoo with its card.

    Args:
        out: folder of the training run.
    Raises:
        UserError: no such recipe, its data are missing, the checkpoint is too large, or as for ``train``.
    """
    made = entry(name)
    check_writable(made.folder, folder=True)
    train(made.recipe, out, device=device, on_event=_shown(log))
    trained = read_json(out / "train" / "result.json")
    fields = ("tokens", "passes", "flops", "seconds")
    values = {**{name: trained[name] for name in fields}, "validation": trained["validation"] or {}}
    training = config.build(Training, values, str(out / "train" / "result.json"))
    model = redraft.load(str(out), "cpu")
    model.defaults = dict(made.card.settings)
    model.settings()  # raises for unknown settings
    model.save(made.folder, _STORAGE, f"# {name}\n")
    size = sum(path.stat().st_size for path in made.folder.iterdir())
    if size > LARGEST:
        what = f"'{made.folder}' has {size / 1e6:.1f} MB, and a shipped checkpoint has at most {LARGEST / 1e6:.0f} MB."
        raise UserError(what, "Use a smaller preset or vocabulary.")
    return _recorded(made, training, log)


def measure(name: str, log: Log) -> Record:
    """Measure a shipped checkpoint again, and write its card. What its training recorded stays as it is.

    Raises:
        UserError: no such recipe, or the checkpoint has no record of its training.
    """
    made = entry(name)
    return _recorded(made, read_record(made.folder).training, log)


def results(made: Entry, log: Log) -> EvaluationResult:
    """Evaluate a shipped checkpoint on the rows of its card, with the settings that it is saved with.

    Raises:
        UserError: the rows can't be read, or as for ``evaluate``.
    """
    wanted = made.evaluation
    model = redraft.load(str(made.folder), "cpu")
    return evaluate(model, wanted.examples(log), wanted, model.settings(**made.card.settings, seed=0), log)


def versions() -> dict[str, str]:
    """Versions of what may change a figure: Python, and the packages that compute it."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"redraft": redraft.__version__, "python": platform.python_version(), **found}


def _shown(log: Log) -> Watcher:
    return lambda event: log(describe(event))


def _recorded(made: Entry, training: Training, log: Log) -> Record:
    """Measure a checkpoint and write ``card.json``, the model card, and the checksums."""
    found = results(made, log)
    described = read_json(made.folder / "config.json")
    record = Record(
        name=made.name,
        family=described["family"]["name"],
        parameters=outline(made.folder).network.parameter_count,
        recipe=f"{RECIPES}/{made.name}.toml",
        training=training,
        measured=measured(found),
        versions=versions(),
    )
    write_atomically(made.folder / "generation_config.json", json.dumps(made.card.settings, indent=2) + "\n")
    write_atomically(made.folder / CARD, record.to_json())
    write_atomically(made.folder / "README.md", page(record, made.card))
    list_checksums(zoo_folder())
    return record
