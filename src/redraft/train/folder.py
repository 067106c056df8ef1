"""The folder of a run: its lock, its recipe, and the checkpoint that it resumes from."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.errors import UserError
from redraft.files import disk_error, exclusive, read_json, write_atomically
from redraft.train import checkpoint, divergence
from redraft.train.checkpoint import Saved, Saver
from redraft.train.ranks import Ranks
from redraft.train.recipe import Recipe


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the folder's lock, so that no second process writes to it. The system releases it when the process ends.

    Raises:
        UserError: another process holds it, or the folder can't be created.
    """
    with own_files(work):
        work.mkdir(parents=True, exist_ok=True)
        with exclusive(work / "lock", f"Another process is training in '{work.parent}'."):
            yield


@contextmanager
def own_files(work: Path) -> Iterator[None]:
    """Name the file of a run's folder that can't be read or written.

    Raises:
        UserError: a folder in place of a file, a disk that is full or read-only, no permission.
    """
    try:
        yield
    except OSError as error:
        place = Path(str(error.filename)) if error.filename else work
        if not place.is_relative_to(work.parent):
            raise
        raise disk_error(error, place) from None


def finished(work: Path) -> Any:
    """The result of a finished run, as a ``loop.Result``'s fields; None if the run isn't finished.

    Raises:
        UserError: the file is damaged.
    """
    path = work / "result.json"
    if not path.exists():
        return None
    try:
        return read_json(path)
    except UserError as error:
        raise UserError(error.what, f"Delete {path}: the same command then writes it again.") from None


def last_checkpoint(recipe: Recipe, work: Path) -> Saved | None:
    """The last checkpoint of this same run. Without one the folder is prepared for a new run.

    Raises:
        UserError: the folder holds a run of another recipe, a model without a run, or a damaged checkpoint.
    """
    path = work / "recipe.toml"
    if checkpoint.checkpoints(work):
        changes = recipe.difference(_recorded(path), str(path))
        if changes and divergence.has_diverged(work) and _tames(changes):
            _keep_old_recipe(path)
            write_atomically(path, recipe.to_toml())
        elif changes:
            raise UserError(
                f"'{work.parent}' holds a run with another recipe ({'; '.join(changes)}).",
                "Restore these settings to resume it, or choose another --out. To train its model further: redraft "
                f"finetune --from {work.parent}.",
            )
        divergence.forget(work)
        return checkpoint.latest(work)
    if any((work.parent / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"'{work.parent}' holds a model and no run to resume.", "Choose another --out.")
    shutil.rmtree(work / "tokenizer", ignore_errors=True)  # of a run killed before its first checkpoint
    write_atomically(path, recipe.to_toml())
    return None


def saver(work: Path, ranks: Ranks) -> Saver:
    """What saves the checkpoints of a run. All machines of several processes share its folder."""
    if ranks.world == 1:
        return Saver(work)
    from redraft.train.sharded_checkpoint import AsyncSaver

    return AsyncSaver(work, ranks)


def tensors(saved: Saved, sharded: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """The tensors [...] of a checkpoint by name, whatever number of processes wrote it.

    Args:
        sharded: the parameters by name, where this process holds only a part of them; else None. What belongs to them
            is read in parts, too.
    Raises:
        UserError: a file can't be read.
    """
    if sharded is None and len(saved.files) == 1:
        return saved.tensors()
    from redraft.train import sharded_checkpoint

    with own_files(saved.path.parent):
        return sharded_checkpoint.read(saved.path, sharded or {})


def _recorded(path: Path) -> dict[str, Any]:
    """The tables of the run's own recipe."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = f"'{path}', the recipe of this run, can't be read ({error})."
        raise UserError(what, f"Restore it, or delete the folder {path.parent} to start again.") from None


def _tames(changes: list[str]) -> bool:
    """Are these only changes that may keep a loss finite? They are lines such as ``train.lr: 0.1 -> 0.01``."""
    return all(change.partition(":")[0] in divergence.TAMING for change in changes)


def _keep_old_recipe(path: Path) -> None:
    """Keep the recipe of the steps up to the last checkpoint beside the new one."""
    step = checkpoint.step_of(checkpoint.checkpoints(path.parent)[-1])
    write_atomically(path.with_name(f"recipe-until-step-{step}.toml"), path.read_text(encoding="utf-8"))


def check_data(recorded: str, sha256: str, tokenizer: str | None, fingerprint: str) -> None:
    """Check that a resumed run reads the same texts with the same tokenizer, wherever their files are now.

    Raises:
        UserError: the training texts or the tokenizer have changed.
    """
    if tokenizer not in (None, fingerprint):
        what = "The tokenizer is not the one that the run began with."
        raise UserError(what, "Restore it, or choose another --out.")
    if recorded != sha256:
        what = "The training texts are not those that the run began with."
        raise UserError(what, "Restore the data, or choose another --out.")
