"""The folder of a run: its lock, its recipe, and the checkpoint that it resumes from."""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from redraft.errors import UserError
from redraft.files import disk_error, write_atomically
from redraft.train import checkpoint
from redraft.train.recipe import Recipe

Saved = tuple[dict[str, Tensor], dict[str, Any]]  # what ``State.pack`` returned


@contextmanager
def locked(work: Path) -> Iterator[None]:
    """Hold the folder's lock, so that no second process writes to it. The system releases it when the process ends.

    Raises:
        UserError: another process holds it, or the folder can't be created.
    """
    import fcntl

    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, work) from None
    with (work / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            what = f"Another process is training in '{work.parent}'."
            raise UserError(what, "Wait for it, or choose another --out.") from None
        yield


def last_checkpoint(recipe: Recipe, work: Path) -> Saved | None:
    """The last checkpoint of this same run. Without one the folder is prepared for a new run.

    Raises:
        UserError: the folder holds a run of another recipe, a model without a run, or a damaged checkpoint.
    """
    path = work / "recipe.toml"
    if checkpoint.checkpoints(work):
        changes = recipe.difference(tomllib.loads(path.read_text(encoding="utf-8")))
        if changes:
            raise UserError(
                f"'{work.parent}' holds a run with another recipe ({'; '.join(changes)}).",
                "Restore these settings to resume it, or choose another --out.",
            )
        return checkpoint.load_latest(work)
    if any((work.parent / name).exists() for name in ("config.json", "adapter_config.json")):
        raise UserError(f"'{work.parent}' holds a model and no run to resume.", "Choose another --out.")
    shutil.rmtree(work / "tokenizer", ignore_errors=True)  # of a run killed before its first checkpoint
    write_atomically(path, recipe.to_toml())
    return None


def check_data(recorded: str, sha256: str) -> None:
    """Check that a resumed run reads the same texts.

    Raises:
        UserError: the training texts have changed.
    """
    if recorded != sha256:
        what = "The training texts are not those that the run began with."
        raise UserError(what, "Restore the data, or choose another --out.")
